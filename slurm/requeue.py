"""Stop and requeue: what a rank does when Slurm tells it to stop, and when it loses its peers.

The signal alone is ambiguous: preemption sends SIGTERM, like `scancel`, and may or may not also send submitit's
SIGUSR2. So rank 0 asks Slurm. A job that is still RUNNING is requeued; any other job is being canceled, or requeued by
someone else, and simply ends.
"""

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from segdist.core.errors import UserError
from segdist.core.launcher import read_reason
from segdist.core.terminal import warn
from slurm.ledger import Ledger, fingerprint

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
PEER_GRACE = 5.0
"""Seconds that a rank waits after losing its peers. If one of them failed with an error of its own, srun kills the rest
within that time, and no one requests a requeue that would only repeat the error."""
TURN = 5.0
"""Seconds between the turns of a node's ranks to request a requeue. Slurm ends them all within that time, so each node
makes one request; the next rank only asks if the one before it is gone."""
WAIT_FOR_THE_END = 900.0
"""Seconds that a rank waits for Slurm to end it after requesting a requeue: Slurm takes minutes to notice a dead
node."""

TIME_LIMIT = "TimeLimit"
"""squeue's reason for a job that Slurm ended at its time limit."""
OUT_OF_TIME = (
    "it reached its time limit without receiving the signal before it; submit it again to resume "
    "(a longer time limit, or signal_seconds in the profile, gives it time to request a requeue itself)"
)
FROM_OUTSIDE = "ended from outside: canceled, or requeued by someone else"

log = logging.getLogger(__name__)


class JobFailed(Exception):
    """The job's own verdict on itself; the message is its reason. A plain exception, so that submitit stores it."""


class Comeback:
    """One rank's handling of signals and requeues while the job runs.

    Use as a context manager around the job. Its handlers are active until the job sets its own, and again after the job
    restores them.

    Args:
        job_id: as Slurm's commands take it, `17` or `17_3`.
        rank: of this task.
        local_rank: of this task on its node.
        ledger: path of the job's ledger.
        reason: path of the file in which a rank records why it fails.
        progress: glob patterns of the files that the job writes.
        under_slurm: False if nothing restarts the job, so that it can only end cleanly.
        patient: only record a signal, in `told_to_stop`: the job runs in child processes that receive it too.
    """

    def __init__(
        self,
        job_id: str,
        rank: int,
        local_rank: int,
        ledger: Path,
        reason: Path,
        progress: tuple[str, ...],
        *,
        under_slurm: bool = True,
        patient: bool = False,
    ) -> None:
        self.job_id, self.rank, self.local_rank = job_id, rank, local_rank
        self.ledger, self.reason, self.progress = ledger, reason, progress
        self.under_slurm, self.patient = under_slurm, patient
        self.told_to_stop = False
        self.leaving = False
        """True once this process is ending, whether or not it will be restarted."""
        self._before: dict[int, Any] = {}  # Any: handlers, as `signal` declares them

    def __enter__(self) -> "Comeback":
        self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def refuse_standstill(self) -> None:
        """Raises JobFailed if the job made no progress in its last three starts."""
        if reason := Ledger.read(self.ledger).standstill(fingerprint(self.progress)):
            self._fail(reason)

    def stopped(self) -> NoReturn:
        """Requeue the job, or end: it has stopped cleanly on all ranks, as requested."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # a second signal must not interrupt the response to the first
        self.leaving = True
        if not self.under_slurm:
            self._fail("stopped by a signal; the same command continues")
        if self.rank != 0:
            self._wait_for_the_end()
        state, reason = state_and_reason(self.job_id)
        if state != "RUNNING":
            Ledger.read(self.ledger).close("cancelled", OUT_OF_TIME if reason == TIME_LIMIT else FROM_OUTSIDE)
            log.warning("job %s is %s: it ends without a requeue", self.job_id, state)
            sys.exit(128 + signal.SIGTERM)
        self.refuse_standstill()
        submitit_handler: Callable[[int, FrameType | None], object] = self._before[signal.SIGUSR2]
        submitit_handler(signal.SIGUSR2, None)  # requeues and exits
        self._fail("submitit did not requeue the job; its log says why")

    def lost_peers(self) -> NoReturn:
        """Requeue the job because this rank can't reach the others; if it just ended, Slurm would mark the job as
        failed."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        log.warning("rank %d lost its peers; waiting %.0f s to see what happened to them", self.rank, PEER_GRACE)
        time.sleep(PEER_GRACE)
        if noted := read_reason(self.reason):  # written by the rank that is gone, or by its witness
            self._fail(noted)
        ledger = Ledger.read(self.ledger)
        if ledger.end == "failed":
            raise JobFailed(ledger.reason)
        if not self.under_slurm:
            self._fail("a rank lost contact with the others: one has died; the same command resumes")
        self.refuse_standstill()
        time.sleep(TURN * self.local_rank)
        if state_of(self.job_id) == "RUNNING":
            # Each node asks; Slurm refuses the second request because the job is no longer running.
            log.warning("rank %d requests a requeue", self.rank)
            subprocess.run(["scontrol", "requeue", self.job_id], check=False)
        self._wait_for_the_end()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """For jobs, or parts of jobs, without their own handlers: they resume from whatever is on disk."""
        log.warning("rank %d: %s", self.rank, signal.Signals(number).name)
        self.told_to_stop = True
        # The other ranks continue until Slurm ends them: a rank that exited now would mark the job as failed.
        if not self.patient and (self.rank == 0 or not self.under_slurm):
            self.stopped()

    def _fail(self, reason: str) -> NoReturn:
        # Record it here, because the job may catch the exception if a signal handler raises it.
        Ledger.read(self.ledger).close("failed", reason)
        raise JobFailed(reason)

    def _wait_for_the_end(self) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(WAIT_FOR_THE_END)
        raise JobFailed(f"rank {self.rank} was not ended by Slurm in time")


def state_of(job_id: str) -> str:
    """The job's state as reported by squeue; "GONE" if squeue no longer knows it. Raises: see `state_and_reason`."""
    return state_and_reason(job_id)[0]


def state_and_reason(job_id: str) -> tuple[str, str]:
    """The job's state and its reason as reported by squeue; "GONE" if squeue no longer knows it.

    Raises:
        UserError: slurmctld does not answer.
    """
    queue = ask_slurm("squeue", "--noheader", "--array", "--me", "--states=all", "--format=%i|%T|%r")
    if queue is None:
        raise UserError("squeue does not answer: the controller is down, and nothing can be requeued")
    for line in queue.splitlines():
        job, state, reason = line.split("|", 2)
        if job == job_id:
            return state, reason
    return "GONE", ""


def ask_slurm(*command: str, attempts: int = 6, limit: float = 60.0) -> str | None:
    """The output of a Slurm command; None if it is missing, fails `attempts` times, or takes too long.

    Args:
        limit: seconds for all attempts together; during a long wait, a line says what it is for.
    """
    deadline = time.monotonic() + limit
    for attempt in range(attempts):
        time.sleep(min(attempt, max(deadline - time.monotonic(), 0)))  # slurmctld is busy, or restarting
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        if attempt:
            warn(f"{command[0]} does not answer; retrying for up to {limit:.0f} s")
        try:
            asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=left)
        except subprocess.TimeoutExpired:
            return None
        except OSError:
            return None
        if asked.returncode == 0:
            return asked.stdout
        log.debug("%s: %s", command[0], asked.stderr)
    return None
