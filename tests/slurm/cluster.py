"""What the cluster tests say to Slurm, and the jobs that they submit."""

import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slurm.code_version import current_version
from slurm.profiles import Profile, load_profile
from slurm.status import Standing, standings
from slurm.submit import Order, Record, submit
from slurm.task import Task

MINI_CLUSTER = Path(__file__).parents[2] / "slurm" / "mini_cluster.sh"
SUBMITTING = threading.Lock()
"""`submit` changes the environment of the process for a moment."""
PATIENCE = 240.0
"""Seconds after which a test gives up waiting: far above what any step takes on a busy machine."""


@dataclass(frozen=True)
class Cluster:
    """The running mini cluster."""

    folder: Path

    def crash(self, node: str) -> None:
        """Cut a node's power."""
        subprocess.run([MINI_CLUSTER, "crash", self.folder, node], check=True)

    def boot(self, node: str) -> None:
        """Switch it on again."""
        subprocess.run([MINI_CLUSTER, "boot", self.folder, node], check=True)


def toy(entry: str, folder: Path, *arguments: object, **options: Any) -> Task:
    """A task that runs a function of `tests.slurm.toys` on `folder`."""
    return Task(
        arguments=(str(folder), *map(str, arguments)),
        folder=str(folder / "slurm"),
        code=current_version(),
        entry=f"tests.slurm.toys:{entry}",
        **options,
    )


def profile(**changes: Any) -> Profile:
    """The mini cluster's profile for one rank on one node, with `changes`.

    Nodes 3 and 4 are left to the tests that ask for them, to preempt or to crash.
    """
    where = {} if "nodelist" in changes else {"exclude": "node3,node4"}
    return replace(load_profile("mini", "make-shards"), memory_gb=1.0, **where, **changes)


def place(name: str, *tasks: Task, **changes: Any) -> Record:
    """Submit tasks under `profile(**changes)`."""
    with SUBMITTING:
        record, _ = submit(Order(name, tasks, profile(**changes), Path(tasks[0].folder)), "slurm")
    return record


def standing(folder: Path, name: str) -> Standing:
    """How the latest submission of `name` stands."""
    return {item.record.name: item for item in standings(folder / "slurm")}[name]


def wait_until(what: str, condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            queue = subprocess.run(["squeue", "--array"], capture_output=True, text=True, check=False).stdout
            raise AssertionError(f"waited in vain until {what}\n{queue}")
        time.sleep(0.3)


def wait_for_end(folder: Path, name: str) -> Standing:
    """Wait until nothing of a submission waits or runs any more; how it stands then."""
    ended: list[Standing] = []

    def has_ended() -> bool:
        now = standing(folder, name)
        if not now.alive:
            ended.append(now)
        return bool(ended)

    wait_until(f"{name} ended", has_ended)
    return ended[0]


def log(folder: Path) -> str:
    """All that the jobs with logs in `folder` wrote to standard error and output."""
    return "\n".join(path.read_text() for path in sorted((folder / "slurm").glob("*_log.*")))
