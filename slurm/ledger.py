"""A job's starts and its end, in one small file next to its logs: `<job id>_ledger.json`.

Slurm may restart a job many times: after preemption, at each time limit, after a node failure. The number of starts
doesn't indicate trouble; three consecutive starts without progress do. So every start records what the job has written
so far, and a job that has written nothing new in its last three starts is not started again.
"""

import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from segdist.core.errors import UserError
from segdist.core.files import write_json
from segdist.core.formats import read_version, stamped
from segdist.core.launcher import read_reason

LEDGER_VERSION = 1

STARTS_WITHOUT_PROGRESS = 3


@dataclass
class Start:
    """One start of the job."""

    time: float
    host: str
    progress: str
    """Fingerprint of the job's output when it started."""


@dataclass
class Ledger:
    """The starts and the end of one job. Only rank 0 writes; anyone can read."""

    path: Path
    starts: list[Start] = field(default_factory=list)
    end: str = ""
    """"finished", "failed", "cancelled", or empty while the job runs, or if its end was never recorded."""
    reason: str = ""
    """Why the job ended as it did, in one line."""

    @classmethod
    def read(cls, path: Path) -> "Ledger":
        """The ledger at `path`, an empty one if there is none.

        Raises:
            UserError: it is damaged, or was written by a newer version.
        """
        if not path.exists():
            return cls(path)
        try:
            values = json.loads(path.read_text())
            read_version(values, LEDGER_VERSION, str(path))
            return cls(path, [Start(**start) for start in values["starts"]], values["end"], values["reason"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}: damaged; delete it (this only resets the count of the job's starts)") from None

    def begin(self, host: str, progress: str) -> None:
        """Record a start."""
        self.starts.append(Start(time.time(), host, progress))
        self.close("", "")

    def close(self, end: str, reason: str) -> None:
        """Record how the job ended, and why."""
        self.end, self.reason = end, " ".join(reason.split())
        values = {"starts": [asdict(start) for start in self.starts], "end": self.end, "reason": self.reason}
        write_json(self.path, stamped(values, LEDGER_VERSION))

    def standstill(self, progress: str) -> str:
        """Why the job should not be started again: no progress in its last three starts. Empty if it should."""
        recent = self.starts[-STARTS_WITHOUT_PROGRESS:]
        if len(recent) < STARTS_WITHOUT_PROGRESS or any(start.progress != progress for start in recent):
            return ""
        return (
            f"no progress in {STARTS_WITHOUT_PROGRESS} starts: nothing new was written since "
            f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(recent[0].time))}; "
            "look at the log for the cause (is the time limit too short to reach the first checkpoint?)"
        )


def ledger_path(folder: Path, job_id: str) -> Path:
    """Path of a job's ledger among the logs in `folder`."""
    return folder / f"{job_id}_ledger.json"


def reason_path(folder: Path, job_id: str, restart: str) -> Path:
    """Path of the file in which a rank records why it fails (`segdist.core.launcher`); each start by Slurm has its
    own."""
    return folder / f"{job_id}_reason_{restart}.json"


def last_reason(folder: Path, job_id: str) -> str:
    """The reason recorded by a rank of the job's latest start, in one line; "" if there is none."""
    found = sorted(folder.glob(f"{job_id}_reason_*.json"), key=lambda path: int(path.stem.rpartition("_")[2]))
    return " ".join(read_reason(found[-1]).split()) if found else ""


def fingerprint(patterns: tuple[str, ...]) -> str:
    """A hash of the names and sizes of the files that match the glob `patterns`, which changes when a job makes
    progress."""
    digest = hashlib.sha256()
    for pattern in patterns:
        for path in sorted(Path().glob(pattern) if not os.path.isabs(pattern) else Path("/").glob(pattern[1:])):
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                continue  # an old checkpoint that was just removed
            digest.update(f"{path}\0{size}\0".encode())
    return digest.hexdigest()[:16]
