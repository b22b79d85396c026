"""Cluster profiles: a TOML file that says once what a cluster wants from its jobs.

    partition = "gpu"
    gpus_per_node = 8
    cpus_per_task = 12

    [environment]
    NCCL_SOCKET_IFNAME = "ib0"

    [jobs.train]          # train differs from the other jobs
    nodes = 4

A profile is a path, or the name of one of the examples in `slurm/profiles`.
"""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from segdist.core.errors import UserError
from segdist.core.parsing import from_dict, merge, near, read_file
from segdist.core.ranges import Count, CountOrZero, Positive, check_ranges

EXAMPLES = Path(__file__).parent / "profiles"
JOBS = ("make-shards", "train", "infer", "report")
"""Jobs that may have a table of their own, `[jobs.NAME]`."""

LIMITLESS_RETRIES = 1_000_000
"""submitit counts time-outs; here progress decides (`slurm.ledger`), so its own limit must not be in the way."""


@dataclass(frozen=True)
class Profile:
    """What one job asks of the cluster. Everything has a default, but most clusters want a partition or an account."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    exclusive: bool = False
    """Whole nodes, whatever the job asks for."""
    nodes: Count = 1
    nodes_min: CountOrZero = 0
    """The job may also start, or come back after an interruption, with fewer nodes, down to so many; 0: always all. A
    training goes on with the same samples, and with --exact with the same bits."""
    gpus_per_node: CountOrZero = 0
    tasks_per_node: Count | None = None
    """Ranks on a node; one per GPU (or one) if left out."""
    cpus_per_task: Count = 1
    memory_gb: Positive | None = None
    """Memory per node; the cluster's default if left out."""
    time_minutes: Count = 60
    """Time limit of one start. A training that needs longer is requeued and continues."""
    signal_seconds: CountOrZero = 120
    """How long before the time limit the job is told to save its state. Slurm may tell up to a minute early."""
    array_parallelism: Count = 64
    """How many tasks of an array may run at a time."""
    launcher: Literal["srun", "torchrun"] = "srun"
    """One Slurm task per rank, or one torchrun per node which starts the ranks itself."""
    python: str | None = None
    """The command that starts Python on a node; the submitting interpreter if left out.
    With Apptainer: "apptainer exec --nv image.sif python"."""
    container: tuple[str, ...] = ()
    """srun's container flags (Pyxis): ["--container-image=…", "--container-mounts=/data"]."""
    srun: tuple[str, ...] = ()
    """Further flags for srun."""
    setup: tuple[str, ...] = ()
    """Shell lines before the job: `module load …`, `source …`."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the job."""
    sbatch: dict[str, str | int | bool] = field(default_factory=dict)
    """Any other flag of sbatch, without the dashes: {"mail-type" = "FAIL", "reservation" = "course"}."""

    @property
    def tasks(self) -> int:
        """Slurm tasks on a node: ranks, or one torchrun."""
        return 1 if self.launcher == "torchrun" else self.ranks_per_node

    @property
    def ranks_per_node(self) -> int:
        """Ranks on a node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    def validate(self, origin: str) -> None:
        """Raises UserError for figures that can't be, or can't work together."""
        check_ranges(self, origin=origin)
        if self.nodes_min > self.nodes:
            raise UserError(f"{origin}: nodes_min = {self.nodes_min} is more than nodes = {self.nodes}")
        if self.nodes_min and self.nodelist is not None:
            raise UserError(f"{origin}: nodelist asks for every node that it names; use exclude beside nodes_min")
        if self.signal_seconds + 60 > 60 * self.time_minutes:
            raise UserError(
                f"{origin}: signal_seconds = {self.signal_seconds} leaves nothing of time_minutes = "
                f"{self.time_minutes}: Slurm sends the signal up to 60 s early; raise time_minutes"
            )


def load_profile(name: str, job: str) -> Profile:
    """The profile `name` (a path, or an example's name) for one job, its `[jobs.<job>]` table laid on top.

    Raises:
        UserError: no such profile, no TOML, an unknown key, or a value of the wrong type.
    """
    path = _find(name)
    values = read_file(path)
    tables = values.pop("jobs", {})
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise UserError(f"{path}: jobs holds tables, as in [jobs.train]")
    from_dict(Profile, values, str(path))
    for table, changes in tables.items():
        if table not in JOBS:
            raise UserError(f"{path}: [jobs.{table}]: no such job; {near(table, JOBS)}")
        from_dict(Profile, changes, f"{path}: [jobs.{table}]")
    # Tables inside a profile add up, so that one variable more doesn't cost the others.
    profile = from_dict(Profile, merge(values, tables.get(job, {})), str(path))
    profile.validate(str(path))
    return profile


def submitit_parameters(profile: Profile, name: str, comment: str) -> dict[str, Any]:
    """`profile` in the words of submitit's AutoExecutor; the `slurm_` ones are ignored by its other executors."""
    srun = [
        # Without it the other ranks would hang when one exits.
        "--kill-on-bad-exit=1",
        # Since 22.05 srun no longer takes this over from sbatch.
        f"--cpus-per-task={profile.cpus_per_task}",
        *profile.container,
        *profile.srun,
    ]
    exports = [f"export {key}={shlex.quote(value)}" for key, value in profile.environment.items()]
    fewer: dict[str, str | int] = {}
    if profile.nodes_min:
        # Slurm looks for up to `nodes` at every start. From a number of tasks per node sbatch would work out one of the
        # whole job, for its fewest nodes: so the job asks for cores, and the step for tasks on the nodes that came.
        fewer = {"nodes": f"{profile.nodes_min}-{profile.nodes}", "mincpus": profile.tasks * profile.cpus_per_task}
        srun.append(f"--ntasks-per-node={profile.tasks}")
    parameters = {
        "name": name,
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
        "slurm_comment": comment,
        "slurm_setup": [*exports, *profile.setup] or None,
        "slurm_srun_args": srun,
        "slurm_additional_parameters": {"requeue": True, **fewer, **profile.sbatch},
    }
    return {key: value for key, value in parameters.items() if value is not None}


def _find(name: str) -> Path:
    for path in (Path(name), EXAMPLES / f"{name}.toml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in EXAMPLES.glob("*.toml")))
    raise UserError(f"--profile {name}: neither a file nor one of the examples ({known})")
