"""Helpers for the cluster tests: Slurm commands and submissions."""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from segdist.core.code_version import current_version
from slurm.profiles import Profile, load_profile
from slurm.standing import ALIVE, Standing, standings
from slurm.submit import Order, Record, job_folder, submit
from slurm.task import Task

MINI_CLUSTER = Path(__file__).parents[2] / "slurm" / "mini_cluster.sh"
SUBMITTING = threading.Lock()
"""Needed because `submit` changes the environment of the process temporarily."""
PATIENCE = 900.0
"""Seconds after which a test gives up waiting for something still possible: far longer than anything takes on a busy
machine. What has become impossible is noticed sooner."""
LOOK_EVERY = 2.0
"""Seconds between checks whether the condition can still be met."""

TOOLS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "unshare")


def skip_without_slurm() -> None:
    """Skip a test, with a clear reason, where the mini cluster can't start."""
    search = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [tool for tool in TOOLS if shutil.which(tool, path=search) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"NO SLURM HERE: needs root and Debian's Slurm packages (missing: {', '.join(missing) or 'root'})")


@dataclass(frozen=True)
class Cluster:
    """The running mini cluster."""

    folder: Path

    def crash(self, node: str) -> None:
        """Simulate a power loss of a node."""
        subprocess.run([MINI_CLUSTER, "crash", self.folder, node], check=True)

    def boot(self, node: str) -> None:
        """Boot a node again."""
        subprocess.run([MINI_CLUSTER, "boot", self.folder, node], check=True)


def toy(entry: str, folder: Path, *arguments: object, **options: Any) -> Task:
    """A task that runs a function of `tests.support.toys` on `folder`."""
    return Task(
        arguments=(str(folder), *map(str, arguments)),
        folder=str(folder / "slurm"),
        code=current_version(),
        entry=f"tests.support.toys:{entry}",
        **options,
    )


def profile(**changes: Any) -> Profile:
    """The mini cluster's profile for one rank on one node, with `changes`.

    Nodes 3 to 6 are reserved for tests that preempt or crash them.
    """
    where = {} if {"nodelist", "exclude"} & changes.keys() else {"exclude": "node[3-6]"}
    return replace(load_profile("mini", "make-shards"), memory_gb=1.0, **where, **changes)


def place(name: str, *tasks: Task, **changes: Any) -> Record:
    """Submit tasks under `profile(**changes)`."""
    with SUBMITTING:
        record, _ = submit(Order(name, tasks, profile(**changes), Path(tasks[0].folder)), "slurm")
    return record


def standing(folder: Path, name: str) -> Standing:
    """Status of the latest submission of `name`."""
    return {item.record.name: item for item in standings(folder / "slurm")}[name]


def wait_until(what: str, condition: Callable[[], bool], hopeless: Callable[[], str] = str) -> None:
    """Wait until `condition` holds.

    Args:
        hopeless: returns why `condition` can no longer be met, or ""; see `ended`.
    """
    deadline = time.monotonic() + PATIENCE
    next_look = time.monotonic() + LOOK_EVERY
    while not condition():
        why = f"{PATIENCE:.0f} s have passed" if time.monotonic() > deadline else ""
        if time.monotonic() > next_look:
            why = why or hopeless()
            next_look = time.monotonic() + LOOK_EVERY
        if why and not condition():
            queue = subprocess.run(["squeue", "--array"], capture_output=True, text=True, check=False).stdout
            raise AssertionError(f"gave up waiting until {what}: {why}\n{queue}")
        time.sleep(0.3)


def ended(look: Callable[[], Standing]) -> Callable[[], str]:
    """A `hopeless` for `wait_until`: the job, or a task of the array, has ended.

    It must be seen three times in a row, because a job being requeued can look ended for a moment.
    """
    times = 0

    def reason() -> str:
        nonlocal times
        now = look()
        times = 0 if all(state.state in ALIVE for state in now.states) else times + 1
        if times < 3:
            return ""
        return f"{now.record.name} has ended, {now.state} after {now.starts} starts; {now.reason}"

    return reason


def wait_for(
    what: str,
    condition: Callable[[Standing], bool],
    look: Callable[[], Standing],
    hopeless: Callable[[], str] | None = None,
) -> Standing:
    """Wait until the status returned by `look` meets `condition`; return that status.

    Args:
        hopeless: as for `wait_until`; by default, whether the job has ended.
    """
    seen: list[Standing] = []

    def holds() -> bool:
        now = look()
        if condition(now):
            seen.append(now)
        return bool(seen)

    wait_until(what, holds, hopeless or ended(look))
    return seen[0]


def wait_for_end(folder: Path, name: str, starts: int = 1) -> Standing:
    """Wait until no job of a submission is pending or running; return the final status.

    Args:
        starts: expected number of starts; more is an error.
    """

    def too_many() -> str:
        now = standing(folder, name)
        return f"start {now.starts}, on {now.states[0].nodes}" if now.starts > starts else ""

    return wait_for(f"{name} ended", lambda now: not now.alive, lambda: standing(folder, name), too_many)


def log(folder: Path) -> str:
    """Standard output and error of the jobs with logs in `folder`."""
    return "\n".join(path.read_text() for path in sorted((folder / "slurm").rglob("*_log.*")))


def log_of_rank_0(folder: Path, record: Record) -> str:
    """Standard output of a job's rank 0 in all starts; it has a file for each node that rank 0 ran on."""
    paths = job_folder(folder / "slurm", record.job_id).glob("*_0_log.out")
    return "".join(path.read_text() for path in sorted(paths, key=lambda path: path.stat().st_mtime))
