"""The states of submitted jobs, from squeue, sacct and the jobs' own ledgers.

Not from submitit, which considers a job that Slurm requeued after a node failure finished, and reports no reasons.
"""

import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from segdist.core.errors import UserError
from segdist.core.launcher import signal_reason
from slurm.ledger import Ledger, last_reason, ledger_path
from slurm.requeue import ask_slurm
from slurm.submit import Record, read_records

NO_ROOM_FOR_LOGS = 1 << 20
"""Free bytes below which a disk counts as full."""

PATIENCE = 10.0
"""Seconds for each query to Slurm, since a user is waiting."""

ALIVE = (
    "PENDING",
    "CONFIGURING",
    "RUNNING",
    "COMPLETING",
    "SUSPENDED",
    "STOPPED",
    "REQUEUED",
    "REQUEUE_HOLD",
    "RESIZING",
)
"""States in squeue of jobs that can still run."""


@dataclass(frozen=True)
class JobState:
    """One job, or one task of an array."""

    state: str
    """Slurm's state in capitals; "LOST" if neither Slurm nor the ledger knows."""
    reason: str = ""
    elapsed: str = ""
    nodes: str = ""


@dataclass(frozen=True)
class Standing:
    """One submission with the states of its tasks."""

    record: Record
    states: tuple[JobState, ...]
    ledgers: tuple[Ledger, ...]

    @property
    def alive(self) -> bool:
        """True if any task is waiting or running."""
        return any(state.state in ALIVE for state in self.states)

    @property
    def finished(self) -> bool:
        """True if every task ended successfully."""
        return all(ledger.end == "finished" for ledger in self.ledgers)

    @property
    def state(self) -> str:
        """One word, or for arrays counts: `3 COMPLETED, 1 RUNNING`."""
        if len(self.states) == 1:
            return self.states[0].state
        counts = Counter(state.state for state in self.states)
        return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))

    @property
    def starts(self) -> int:
        """The maximum number of starts over the tasks."""
        return max((len(ledger.starts) for ledger in self.ledgers), default=0)

    @property
    def reason(self) -> str:
        """Why it is waiting or why it ended, in one line: the first reason given by a task."""
        if not self.finished:
            for task, ledger, state in zip(self.record.task_ids, self.ledgers, self.states, strict=True):
                if state.state not in ALIVE:
                    # If no one was left to close the ledger, a rank or its witness recorded the reason.
                    said = ledger.reason or last_reason(ledger.path.parent, task)
                    if said:
                        return said
        return next((state.reason for state in self.states if state.reason), "")


def standings(folder: Path) -> list[Standing]:
    """The latest submission of each name in `folder` with its state, in the order of first submission."""
    latest: dict[str, Record] = {}
    for record in read_records(folder):
        latest[record.name] = record
    states = slurm_states(task for record in latest.values() if record.cluster == "slurm" for task in record.task_ids)
    found = []
    for record in latest.values():
        ledgers = tuple(Ledger.read(ledger_path(folder, task)) for task in record.task_ids)
        found.append(
            Standing(
                record,
                tuple(
                    _on_a_full_disk(folder, states.get(task) or _from_ledger(ledger, last_reason(folder, task)))
                    for task, ledger in zip(record.task_ids, ledgers, strict=True)
                ),
                ledgers,
            )
        )
    return [_blame(standing, found) for standing in found]


def left_in_queue(folder: Path) -> list[str]:
    """Waiting or running jobs submitted with their logs in `folder`, as `17 RUNNING`; asks only Slurm."""
    queue = ask_slurm("squeue", "--noheader", "--me", "--format=%i|%T|%k", attempts=1, limit=PATIENCE)
    jobs = [line.split("|", 2) for line in (queue or "").splitlines()]
    return [f"{job} {state}" for job, state, comment in jobs if comment == f"segdist {folder}"]


def _on_a_full_disk(folder: Path, state: JobState) -> JobState:
    """Explain a job that failed without a message because there was no room to write one."""
    silent = state.state == "FAILED" and state.reason.startswith(("exit code", "killed by"))
    if not silent or shutil.disk_usage(folder).free > NO_ROOM_FOR_LOGS:
        return state
    reason = f"{state.reason}; the disk of {folder} is full: make room and submit again"
    return JobState(state.state, reason, state.elapsed, state.nodes)


def slurm_states(task_ids: Iterable[str]) -> dict[str, JobState]:
    """States of the tasks that Slurm knows: from squeue, which is up to date, or from sacct for those it has forgotten.

    Raises:
        UserError: squeue does not answer. (sacct doesn't have to: some clusters have no accounting.)
    """
    wanted = set(task_ids)
    if not wanted:
        return {}
    states = {}
    jobs = ",".join(sorted({task.split("_")[0] for task in wanted}))
    fields = "--format=JobID,State,ExitCode,Elapsed,NodeList"
    accounting = ask_slurm(
        *("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={jobs}", fields), attempts=1, limit=PATIENCE
    )
    for line in (accounting or "").splitlines():
        task, state, code, elapsed, nodes = line.split("|")
        # "CANCELLED by 1000": the user follows the state.
        word, _, who = state.partition(" ")
        states[task] = JobState(word, who or _exit_reason(code), elapsed, nodes)
    queue = ask_slurm(
        *("squeue", "--noheader", "--array", "--me", "--states=all", "--format=%i|%T|%r|%M|%N"), limit=PATIENCE
    )
    if queue is None:
        raise UserError("squeue does not answer: no Slurm on this machine, or its controller is down; try again")
    for line in queue.splitlines():
        task, state, reason, elapsed, nodes = line.split("|")
        # For a job that has ended, sacct says more, once it knows.
        if state in ALIVE or task not in states or states[task].state in ALIVE:
            reason = "" if reason == "None" else reason
            if state == "SUSPENDED":
                reason = f"by an administrator, or for a job of higher priority; `scontrol resume {task}` continues it"
            states[task] = JobState(state, reason, elapsed, nodes)
    return {task: state for task, state in states.items() if task in wanted}


def _exit_reason(code: str) -> str:
    """sacct's `2:0` (exit code) or `0:9` (signal) in words; "" for success."""
    exit_code, _, number = code.partition(":")
    if number not in ("", "0"):
        return signal_reason(int(number))
    return "" if exit_code == "0" else f"exit code {exit_code}"


def _from_ledger(ledger: Ledger, noted: str) -> JobState:
    words = {"finished": "COMPLETED", "failed": "FAILED", "cancelled": "CANCELLED"}
    if ledger.end:
        return JobState(words[ledger.end])
    if noted:  # the rank that keeps the ledger was killed
        return JobState("FAILED", noted)
    return JobState("RUNNING" if ledger.starts else "LOST", "" if ledger.starts else "no trace of a start")


def _blame(standing: Standing, others: list[Standing]) -> Standing:
    """Explain a canceled link by the predecessor that failed, and its reason."""
    if standing.alive or standing.starts:
        return standing
    for other in others:
        if other.record.job_id in standing.record.after and not other.alive and not other.finished:
            cause = other.reason or other.state
            if other.record.after and not other.starts:
                cause = f"{other.record.name} was also canceled"
            reason = f"{other.record.name} (job {other.record.job_id}) did not succeed: {cause}"
            states = tuple(JobState(state.state, reason, state.elapsed) for state in standing.states)
            return Standing(standing.record, states, standing.ledgers)
    return standing
