"""What submitit pickles and runs on the nodes: a job's import path and its arguments, nothing else.

Every rank runs `Task.__call__`. Nothing heavy is imported before the job itself, so a Task can be created on a login
node without torch.
"""

import importlib
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from submitit import JobEnvironment
from submitit.core.utils import DelayedSubmission

from segdist.core.code_version import CodeVersion, current_version
from segdist.core.errors import UserError
from segdist.core.exit_codes import FAILED, FINISHED, LOST_PEERS, STOPPED, is_communication_error
from segdist.core.launcher import REASON_FILE, end_with_launcher, read_reason
from slurm.ledger import Ledger, fingerprint, ledger_path, reason_path
from slurm.requeue import Comeback, JobFailed
from slurm.staging import staged

FIRST_PORT, PORTS = 20000, 12000
"""Rank 0's port is derived from the job id, below the range that Linux assigns to clients."""

OF_AN_EARLIER_JOB = 60.0
"""Seconds before the start of a job; anything older was left by another job with the same number."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """One job, called on every rank."""

    arguments: tuple[str, ...]
    """Arguments of the entry, as on a command line."""
    folder: str
    """Absolute path of the folder with the job's logs and ledger."""
    code: CodeVersion
    """Version of the submitted code."""
    entry: str = "jobs.cli:main"
    """module:function, which takes a list of arguments and returns an exit code."""
    progress: tuple[str, ...] = ()
    """Glob patterns of the files that show progress: checkpoints, finished images."""
    stage: str = ""
    """The folder among the arguments to copy to the node first …"""
    stage_to: str = ""
    """… into this folder; can contain the node's environment variables, such as $TMPDIR."""
    torchrun: int = 0
    """Number of ranks to start on each node through torchrun; 0: this process is a rank."""

    def __call__(self) -> str:
        """Run the job on this rank.

        Raises:
            JobFailed: it did not succeed; the message says why.
        """
        end_with_launcher()
        _log_to_stderr()
        job = JobEnvironment()
        path = ledger_path(Path(self.folder), job.job_id)
        reason = reason_path(Path(self.folder), job.job_id, os.environ.get("SLURM_RESTART_COUNT", "0"))
        os.environ[REASON_FILE] = str(reason)
        comeback = Comeback(
            job.job_id,
            job.global_rank,
            job.local_rank,
            path,
            reason,
            self.progress,
            under_slurm=job.cluster == "slurm",
            patient=self.torchrun > 0,
        )
        with comeback:
            try:
                if job.global_rank == 0:
                    self._begin(path, reason, comeback)
                code = self._run(job, comeback)
                if code == STOPPED:
                    comeback.stopped()
                if code == LOST_PEERS and job.num_tasks > 1:
                    comeback.lost_peers()
                if code != FINISHED:
                    sys.tracebacklimit = 0  # the traceback to this line says nothing about the job's error
                    raise JobFailed(read_reason(reason) or f"exit code {code}")
            except Exception as error:
                _close_failed(path, job.global_rank, error)
                raise
        if job.global_rank == 0:
            Ledger.read(path).close("finished", "")
        return "finished"

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit on rank 0 before it requeues the job, which starts the same way and continues from
        disk."""
        return DelayedSubmission(self)

    def _run(self, job: JobEnvironment, comeback: Comeback) -> int:
        arguments = list(self.arguments)
        if self.stage_to:
            copy = str(staged(Path(self.stage), self.stage_to, job.local_rank))
            arguments = [copy if argument == self.stage else argument for argument in arguments]
        if self.torchrun:
            from slurm.torchrun import run_torchrun  # loads torch, which other jobs may not need

            return run_torchrun(self.entry, arguments, job, self.torchrun, port(job.raw_job_id), comeback)
        os.environ.update(rank_variables(job))
        try:
            return load_entry(self.entry)(arguments)
        except SystemExit as left:  # bad options; but let a rank that exits for a requeue go
            if comeback.leaving:
                raise
            return left.code if isinstance(left.code, int) else FAILED
        except Exception as error:
            if not is_communication_error(error):
                raise
            log.warning("rank %d: %s", job.global_rank, error, exc_info=error)
            return LOST_PEERS

    def _begin(self, path: Path, reason: Path, comeback: Comeback) -> None:
        """Record the start; refuse it if previous starts made no progress."""
        # Job ids can repeat: on a new cluster, or, without Slurm, because they are process ids.
        if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
            path.unlink(missing_ok=True)
            # Another rank of this start may have failed already.
            if reason.exists() and time.time() - reason.stat().st_mtime > OF_AN_EARLIER_JOB:
                reason.unlink(missing_ok=True)
        comeback.refuse_standstill()
        Ledger.read(path).begin(socket.gethostname(), fingerprint(self.progress))
        now = current_version()
        if now.digest != self.code.digest:
            log.warning("the checkout has changed since this job was submitted: it runs %s, not %s", now, self.code)


def _log_to_stderr() -> None:
    """Log this room's own lines, with the time, to standard error; leave submitit's logger alone."""
    room = logging.getLogger("slurm")
    room.propagate = False
    room.handlers = [logging.StreamHandler()]
    room.handlers[0].setFormatter(logging.Formatter("%(asctime)s segdist: %(message)s", "%H:%M:%S"))


def _close_failed(path: Path, rank: int, error: Exception) -> None:
    """Record why a rank failed; the first one to fail is the cause, and the others' errors follow from it."""
    if rank != 0:
        time.sleep(1)  # let rank 0 go first if it has also failed, or hasn't recorded its start yet
    ledger = Ledger.read(path)
    if not ledger.end:
        reason = str(error) if isinstance(error, JobFailed | UserError) else f"{type(error).__name__}: {error}"
        ledger.close("failed", reason if rank == 0 else f"rank {rank}: {reason}")


def load_entry(entry: str) -> Callable[[list[str]], int]:
    """Import the function named by `module:function`."""
    module, _, function = entry.partition(":")
    loaded: Callable[[list[str]], int] = getattr(importlib.import_module(module), function)
    return loaded


def rank_variables(job: JobEnvironment) -> dict[str, str]:
    """torchrun's variables for a rank that submitit started on this machine; ranks started by srun have their own."""
    if job.cluster != "local" or job.num_tasks == 1:
        return {}
    return {
        "RANK": str(job.global_rank),
        "LOCAL_RANK": str(job.local_rank),
        "WORLD_SIZE": str(job.num_tasks),
        "LOCAL_WORLD_SIZE": str(job.num_tasks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port(job.raw_job_id)),
    }


def port(raw_job_id: str) -> int:
    """A port for rank 0 that all ranks can compute, and that differs between two jobs on one node."""
    return FIRST_PORT + int(raw_job_id) % PORTS
