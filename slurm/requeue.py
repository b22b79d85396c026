"""Stopping and coming back: what a rank does when Slurm tells it to stop, and when its peers are gone.

The signal alone does not say what is wanted: a preemption sends SIGTERM as `scancel` does, and may or may not send
submitit's SIGUSR2 as well. So rank 0 asks Slurm. A job that is still RUNNING shall come back, and is requeued; any
other is being cancelled, or requeued by somebody else, and just ends.
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
"""Seconds that a rank waits after it has lost its peers. If one of them ended with an error of its own, srun kills
the rest within that time, and nobody asks for a requeue that would only repeat the error."""
TURN = 5.0
"""Seconds between the turns of a node's ranks to ask for a requeue. Slurm ends them all within that time, so that one
request a node is made; the next rank asks where the one before it is gone."""
WAIT_FOR_THE_END = 900.0
"""Seconds that a rank waits for Slurm to end it, after a requeue was asked for: a dead node takes minutes to notice."""

TIME_LIMIT = "TimeLimit"
"""squeue's reason for a job that Slurm ends at its time limit."""
OUT_OF_TIME = (
    "its time limit was reached without the signal that comes before it; submit it again, and it goes on from there "
    "(a longer time limit, or signal_s in the profile, leaves it time to ask for a requeue itself)"
)
FROM_OUTSIDE = "ended from outside: cancelled, or requeued by somebody else"

log = logging.getLogger(__name__)


class JobFailed(Exception):
    """The job's own verdict on itself; the message is its reason. A plain exception, so that submitit stores it."""


class Comeback:
    """One rank's dealings with signals and requeues, while the job runs.

    Use as a context manager around the job. Its handlers are in force until the job sets its own, and again after
    the job has put them back.

    Args:
        job_id: as Slurm's commands want it, `17` or `17_3`.
        rank: of this task.
        local_rank: of this task on its node.
        ledger: path of the job's ledger.
        reason: path of the file in which a rank says why it fails.
        progress: glob patterns of the files that the job makes.
        under_slurm: without it nobody starts a job again, and all that is left is to end in good order.
        patient: a signal is only noted, in `told_to_stop`: the job runs in processes of its own that get it as well.
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
        """Whether this process is on its way out, to be started again or not at all."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Comeback":
        self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def refuse_standstill(self) -> None:
        """Raises JobFailed if the job has made nothing in its last three starts."""
        if reason := Ledger.read(self.ledger).standstill(fingerprint(self.progress)):
            self._fail(reason)

    def stopped(self) -> NoReturn:
        """The job has stopped in good order, on all ranks, because it was told to: have it requeued, or end."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # a second signal must not disturb what the first one started
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
        submitit_handler: Callable[[int, FrameType | None], Any] = self._before[signal.SIGUSR2]
        submitit_handler(signal.SIGUSR2, None)  # requeues and exits
        self._fail("submitit did not requeue the job; its log says why")

    def lost_peers(self) -> NoReturn:
        """This rank can't reach the others: have the job requeued, for if it just ended, Slurm would call it failed."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        log.warning("rank %d lost its peers; what became of them shows in %.0f s", self.rank, PEER_GRACE)
        time.sleep(PEER_GRACE)
        if noted := read_reason(self.reason):  # by the rank that is gone, or by its witness
            self._fail(noted)
        ledger = Ledger.read(self.ledger)
        if ledger.end == "failed":
            raise JobFailed(ledger.reason)
        if not self.under_slurm:
            self._fail("a rank can't reach the others any more: one has died; the same command resumes")
        self.refuse_standstill()
        time.sleep(TURN * self.local_rank)
        if state_of(self.job_id) == "RUNNING":
            # Each node asks; the second request finds the job no longer running and is refused.
            log.warning("rank %d asks for a requeue", self.rank)
            subprocess.run(["scontrol", "requeue", self.job_id], check=False)
        self._wait_for_the_end()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """For jobs, or parts of jobs, that have no handlers of their own: what is on disk is what they resume from."""
        log.warning("rank %d: %s", self.rank, signal.Signals(number).name)
        self.told_to_stop = True
        # The other ranks go on until Slurm ends them: one that left now would make the job a failed one.
        if not self.patient and (self.rank == 0 or not self.under_slurm):
            self.stopped()

    def _fail(self, reason: str) -> NoReturn:
        # Noted here already: the job may catch the exception when it is raised by a signal's handler.
        Ledger.read(self.ledger).close("failed", reason)
        raise JobFailed(reason)

    def _wait_for_the_end(self) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(WAIT_FOR_THE_END)
        raise JobFailed(f"rank {self.rank} waited in vain to be ended by Slurm")


def state_of(job_id: str) -> str:
    """The job's state in squeue's words, "GONE" when squeue no longer knows it. Raises: see `state_and_reason`."""
    return state_and_reason(job_id)[0]


def state_and_reason(job_id: str) -> tuple[str, str]:
    """The job's state and the reason for it, in squeue's words; "GONE" when squeue no longer knows it.

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
    """What one of Slurm's commands prints; None when it is missing, fails `attempts` times over, or takes too long.

    Args:
        limit: seconds for all attempts together; after a while a line says what is waited for.
    """
    deadline = time.monotonic() + limit
    for attempt in range(attempts):
        time.sleep(min(attempt, max(deadline - time.monotonic(), 0)))  # slurmctld is busy, or restarting
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        if attempt:
            warn(f"{command[0]} does not answer; trying for up to {limit:.0f} s")
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
