"""Cluster profiles: a TOML file with the settings that a cluster requires of jobs.

    partition = "gpu"
    gpus_per_node = 8
    cpus_per_task = 12

    [environment]
    NCCL_SOCKET_IFNAME = "ib0"

    [jobs.train]          # overrides for train
    nodes = 4

A profile is a path, or the name of one of the examples in `slurm/profiles`.
"""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from segdist.core.errors import UserError
from segdist.core.json_values import JsonObject, Keywords
from segdist.core.parsing import from_dict, merge, near, parse_table, read_file
from segdist.core.ranges import Count, CountOrZero, Positive, check_ranges
from segdist.core.shipped import shipped_files

JOBS = ("make-shards", "train", "infer", "report")
"""Jobs that can have their own table, `[jobs.NAME]`."""

LIMITLESS_RETRIES = 1_000_000
"""submitit limits the number of time-outs; here progress decides (`slurm.ledger`), so its limit must not interfere."""


@dataclass(frozen=True)
class Profile:
    """What one job requests from the cluster. Everything has a default, but most clusters need a partition or an
    account."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    exclusive: bool = False
    """Allocate whole nodes, whatever the job requests."""
    nodes: Count = 1
    nodes_min: CountOrZero = 0
    """Allow the job to start, or to restart after an interruption, with fewer nodes, down to this number; 0: always
    all. A training continues with the same samples, and with --exact with the same bits."""
    gpus_per_node: CountOrZero = 0
    tasks_per_node: Count | None = None
    """Ranks per node; default: one per GPU, or one."""
    cpus_per_task: Count = 1
    memory_gb: Positive | None = None
    """Memory per node; default: the cluster's."""
    time_minutes: Count = 60
    """Time limit of one start. A training that needs longer is requeued and continues."""
    signal_seconds: CountOrZero = 120
    """How long before the time limit the job is signaled to save its state. Slurm can send the signal up to a minute
    early."""
    array_parallelism: Count = 64
    """Maximum number of array tasks that run at a time."""
    launcher: Literal["srun", "torchrun"] = "srun"
    """srun: one Slurm task per rank; torchrun: one torchrun per node, which starts the ranks."""
    python: str | None = None
    """The command that starts Python on a node; default: the submitting interpreter.
    With Apptainer: "apptainer exec --nv image.sif python"."""
    container: tuple[str, ...] = ()
    """srun's container flags (Pyxis): ["--container-image=…", "--container-mounts=/data"]."""
    srun: tuple[str, ...] = ()
    """Additional flags for srun."""
    setup: tuple[str, ...] = ()
    """Shell lines to run before the job: `module load …`, `source …`."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the job."""
    sbatch: dict[str, str | int | bool] = field(default_factory=dict)
    """Any other sbatch flags, without the dashes: {"mail-type" = "FAIL", "reservation" = "course"}."""

    @property
    def tasks(self) -> int:
        """Slurm tasks per node: the ranks, or one torchrun."""
        return 1 if self.launcher == "torchrun" else self.ranks_per_node

    @property
    def ranks_per_node(self) -> int:
        """Ranks per node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    def validate(self, origin: str) -> None:
        """Raises UserError for impossible or incompatible values."""
        check_ranges(self, origin=origin)
        if self.nodes_min > self.nodes:
            raise UserError(f"{origin}: nodes_min = {self.nodes_min} is more than nodes = {self.nodes}")
        if self.nodes_min and self.nodelist is not None:
            raise UserError(
                f"{origin}: nodelist requests every node that it names; combine nodes_min with exclude instead"
            )
        if self.signal_seconds + 60 > 60 * self.time_minutes:
            raise UserError(
                f"{origin}: signal_seconds = {self.signal_seconds} uses up time_minutes = "
                f"{self.time_minutes}: Slurm sends the signal up to 60 s early; raise time_minutes"
            )


def load_profile(name: str, job: str) -> Profile:
    """The profile `name` (a path, or an example's name) for one job, with its `[jobs.<job>]` table applied.

    Raises:
        UserError: no such profile, invalid TOML, an unknown key, or a value of the wrong type.
    """
    origin, values = _read(name)
    tables = values.pop("jobs", {})
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise UserError(f"{origin}: jobs must contain tables, as in [jobs.train]")
    from_dict(Profile, values, origin)
    for table, changes in tables.items():
        if table not in JOBS:
            raise UserError(f"{origin}: [jobs.{table}]: no such job; {near(table, JOBS)}")
        from_dict(Profile, changes, f"{origin}: [jobs.{table}]")
    # Tables inside a profile are merged, so that adding one variable doesn't remove the others.
    profile = from_dict(Profile, merge(values, tables.get(job, {})), origin)
    profile.validate(origin)
    return profile


def submitit_parameters(profile: Profile, job: str, logs: Path, *, array: bool) -> Keywords:
    """`profile` as parameters of submitit's AutoExecutor; its other executors ignore those that start with `slurm_`.

    Args:
        logs: the folder of the run's logs; each job, or task of an array, gets one of its own in there.
    """
    pattern, number = "%j", "${SLURM_JOB_ID}"
    if array:
        pattern, number = "%A_%a", "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
    # Slurm opens this one before the script runs, perhaps before submitit has made the job's folder.
    batch_log = f"{logs}/{pattern}_batch_log.out"
    here = f"{shlex.quote(str(logs))}/{number}"
    setup = [f"mkdir -p {here}"]
    setup += [f"ln -sfn ${{SLURMD_NODENAME}}_0_log.{suffix} {here}/rank0.{suffix}" for suffix in ("out", "err")]
    srun = [
        # By node and rank; restarts append.
        f"--output={logs}/{pattern}/%N_%t_log.out",
        f"--error={logs}/{pattern}/%N_%t_log.err",
        # Without this, the other ranks would hang when one exits.
        "--kill-on-bad-exit=1",
        # Since 22.05, srun no longer inherits this from sbatch.
        f"--cpus-per-task={profile.cpus_per_task}",
        *profile.container,
        *profile.srun,
    ]
    exports = [f"export {key}={shlex.quote(value)}" for key, value in profile.environment.items()]
    fewer: dict[str, str | int] = {}
    if profile.nodes_min:
        # Slurm looks for up to `nodes` at every start. Given tasks per node, sbatch would compute the job's total from
        # the minimum number of nodes, so the job requests cores, and the step requests tasks on the nodes it got.
        fewer = {"nodes": f"{profile.nodes_min}-{profile.nodes}", "mincpus": profile.tasks * profile.cpus_per_task}
        srun.append(f"--ntasks-per-node={profile.tasks}")
    parameters = {
        "name": f"{logs.parent.name}-{job}",
        "nodes": profile.nodes,
        "tasks_per_node": None if profile.nodes_min else profile.tasks,
        "cpus_per_task": profile.cpus_per_task,
        "gpus_per_node": profile.gpus_per_node or None,
        "mem_gb": profile.memory_gb,
        "timeout_min": profile.time_minutes,
        "slurm_partition": profile.partition,
        "slurm_account": profile.account,
        "slurm_qos": profile.qos,
        "slurm_constraint": profile.constraint,
        "slurm_nodelist": profile.nodelist,
        "slurm_exclude": profile.exclude,
        "slurm_exclusive": profile.exclusive or None,
        "slurm_signal_delay_s": profile.signal_seconds,
        "slurm_array_parallelism": profile.array_parallelism,
        "slurm_comment": f"segdist {logs}",
        "slurm_setup": [*setup, *exports, *profile.setup],
        "slurm_srun_args": srun,
        "slurm_additional_parameters": {
            "output": batch_log,
            "error": batch_log,
            "requeue": True,
            **fewer,
            **profile.sbatch,
        },
    }
    return {key: value for key, value in parameters.items() if value is not None}


def examples() -> dict[str, str]:
    """The text of each example by its name."""
    return shipped_files("slurm", "profiles", ".toml")


def _read(name: str) -> tuple[str, JsonObject]:
    """Where a profile comes from, for messages, and its values."""
    if Path(name).is_file():
        return name, read_file(Path(name))
    known = examples()
    if name not in known:
        raise UserError(f"--profile {name}: neither a file nor one of the examples ({', '.join(known)})")
    return f"profile {name}", parse_table(known[name], f"profile {name}")
