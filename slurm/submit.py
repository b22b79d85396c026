"""Submit a job through submitit: to Slurm, in the background of this machine, or within this process.

All three run the same `Task`. Submissions are recorded in the run's folder of logs, one line each in
`submitted.jsonl`. On Slurm, each job, or task of an array, keeps its files in a folder of its own (`job_folder`).
"""

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor, _convert_mem, _make_sbatch_string

from segdist.core.errors import UserError
from segdist.core.formats import stamped, unstamped
from segdist.core.json_values import Keywords
from segdist.core.paths import SUBMITTED
from segdist.core.terminal import warn
from slurm.profiles import LIMITLESS_RETRIES, Profile, submitit_parameters
from slurm.task import Task
from slurm.witness import OF_A_JOB

Cluster = Literal["slurm", "local", "debug"]
RECORD_VERSION = 1


@dataclass(frozen=True)
class Record:
    """One submission, as recorded in the folder of its logs."""

    name: str
    """The job: "train", "infer", …"""
    job_id: str
    """Slurm's job id, for the whole array if there are several tasks; without Slurm, a process id."""
    tasks: int
    """Array size; 1: not an array."""
    cluster: str
    arguments: list[list[str]]
    """The command of each array task."""
    after: list[str]
    """Ids of the jobs that must succeed first."""
    code: str
    time: float
    settings: str = ""
    """Fingerprint of the files that the commands read their settings from."""

    @property
    def task_ids(self) -> list[str]:
        """Slurm's id of each array task."""
        return [self.job_id] if self.tasks == 1 else [f"{self.job_id}_{index}" for index in range(self.tasks)]


@dataclass(frozen=True)
class Order:
    """What to submit: one task, or the tasks of an array, under one name and profile."""

    name: str
    tasks: tuple[Task, ...]
    profile: Profile
    folder: Path
    """Folder for logs, pickles and records; shared between the nodes."""
    after: tuple[str, ...] = ()
    """Ids of jobs that must succeed first. If one fails, this job is canceled."""
    settings: str = ""
    """Fingerprint of the files that the commands read their settings from; a different one means a different job."""

    def parameters(self) -> Keywords:
        """Parameters for submitit's AutoExecutor."""
        parameters = submitit_parameters(self.profile, self.name, self.folder, array=len(self.tasks) > 1)
        if self.after:
            parameters["slurm_dependency"] = "afterok:" + ":".join(self.after)
            # Otherwise a job whose predecessor failed would stay in the queue forever.
            parameters["slurm_additional_parameters"]["kill-on-invalid-dep"] = "yes"
        return parameters


def submit(order: Order, cluster: Cluster) -> tuple[Record, list[submitit.Job[str]]]:
    """Submit `order`; returns its record, and submitit's jobs, one per array task.

    Raises:
        UserError: no Slurm here, or sbatch refuses the job.
    """
    order.folder.mkdir(parents=True, exist_ok=True)
    if cluster != "slurm" and order.profile.nodes > 1:
        raise UserError(
            f"{order.name}: the profile requests {order.profile.nodes} nodes, but --cluster {cluster} has one: "
            "use --profile local, or one with nodes = 1"
        )
    if cluster != "slurm" and len(order.tasks) > 1:
        raise UserError(f"{order.name}: a job array needs --cluster slurm")
    try:
        executor = submitit.AutoExecutor(
            order.folder / OF_A_JOB if cluster == "slurm" else order.folder,
            cluster=cluster,
            slurm_max_num_timeout=LIMITLESS_RETRIES,
            slurm_python=_python(order),
            local_python=_python(order),
        )
    except RuntimeError as error:
        raise UserError(f"--cluster slurm: {error} Log in to the cluster, or use --cluster local") from None
    executor.update_parameters(**order.parameters())
    # On Slurm, the script exports the profile's variables; otherwise the job inherits those of this process.
    with _environment({} if cluster == "slurm" else order.profile.environment):
        try:
            jobs = executor.submit_array(order.tasks) if len(order.tasks) > 1 else [executor.submit(order.tasks[0])]
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError(
                f"{order.name}: sbatch refused the job; does the profile fit this cluster?\n{error}"
            ) from None
    record = Record(
        name=order.name,
        job_id=jobs[0].job_id.split("_")[0] if cluster == "slurm" else jobs[0].job_id,
        tasks=len(jobs),
        cluster=cluster,
        arguments=[list(task.arguments) for task in order.tasks],
        after=list(order.after),
        code=str(order.tasks[0].code),
        time=round(time.time(), 3),
        settings=order.settings,
    )
    with (order.folder / SUBMITTED).open("a") as file:
        file.write(json.dumps(stamped(asdict(record), RECORD_VERSION)) + "\n")
    return record, jobs


def sbatch_script(order: Order) -> str:
    """The script that `submit` would pass to sbatch; doesn't need Slurm."""
    names = SlurmExecutor._equivalence_dict() or {}
    parameters = {names.get(key, key.removeprefix("slurm_")): value for key, value in order.parameters().items()}
    if "mem" in parameters:
        parameters["mem"] = _convert_mem(parameters["mem"])
    if len(order.tasks) > 1:
        parameters["map_count"] = len(order.tasks)
    folder = order.folder / OF_A_JOB
    command = f"{_python(order)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    script: str = _make_sbatch_string(command=command, folder=folder, **parameters)
    return script


def job_folder(folder: Path, task_id: str) -> Path:
    """The folder of the logs of a Slurm job or array task (`17` or `17_3`), in the run's folder of logs.

    It holds `<node>_<rank>_log.out` and `.err` for every node that the job has run on, and links `rank0.out` and
    `rank0.err` to those of rank 0 in the latest start. Versions up to 0.2.0 put all files into `folder` itself.
    """
    return folder / task_id


def read_records(folder: Path) -> list[Record]:
    """The submissions with logs in `folder`, oldest first; empty if there are none."""
    path = folder / SUBMITTED
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            records.append(Record(**unstamped(json.loads(line), RECORD_VERSION, str(path))))
        except (ValueError, TypeError):
            warn(f"{path}: line {number} is damaged; its job is not shown")
    return records


def _python(order: Order) -> str:
    """The command to use for `python` on a node: it gives each rank a witness."""
    return f"{order.profile.python or shlex.quote(sys.executable)} -m slurm.witness"


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set `variables`, and hide those of any Slurm job that this process runs in: they must not affect the new job."""
    hidden = [name for name in os.environ if name.startswith("SLURM_") and name != "SLURM_CONF"]
    before = {name: os.environ.get(name) for name in [*hidden, *variables]}
    for name in hidden:
        del os.environ[name]
    os.environ.update(variables)
    try:
        yield
    finally:
        # Change only these, because other threads may be reading the rest.
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
