"""Ownership of a folder: only one job at a time may write to it, or several that belong together.

Each owner keeps a record in `<folder>/.owners/` for as long as it lives. On one machine, the kernel shows whether an
owner is alive: it holds a lock on its record, which dies with its process. Between machines, a heartbeat does: the
record's modification time changes every `BEAT` seconds. A requeued Slurm job replaces its earlier start immediately.

If two jobs arrive at the same moment, each first announces itself under a name that the other can see. The one with the
greater name backs off, and the other waits until it has (Lamport's bakery, with names instead of numbers). So exactly
one gets in, on any file system, without leaving a lock file behind.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import ModuleType

from segdist.core.errors import UserError
from segdist.core.exit_codes import FAILED
from segdist.core.formats import read_version, stamped
from segdist.core.json_values import JsonObject
from segdist.core.paths import OWNERS
from segdist.core.terminal import show_error, warn

try:
    import fcntl

    locks: ModuleType | None = fcntl
except ImportError:  # Windows, where only the heartbeat decides
    locks = None

OWNER_VERSION = 1
BEAT = 10.0
"""Seconds between two signs of life."""
STALE_AFTER = 60.0
"""Seconds without a sign of life after which an owner on another machine counts as dead."""
LOOK_EVERY = 0.5
"""Seconds between checks of an owner that is being waited for."""
ATTEMPTS = 100
"""To create a record while others remove the folder of records."""
ASKING, OWNING = ".asking", ".json"
"""Suffixes of a record: while its job asks for ownership, and once it has it."""

_held: dict[Path, "Record"] = {}
"""Records of this process. They are never opened again, because closing any handle of a file releases the lock on
it."""


@dataclass(frozen=True)
class Record:
    """One owner."""

    job: str
    """The job's name, for messages: `segdist train`."""
    group: str
    """Owners in the same group can write at the same time; an owner without a group is alone."""
    host: str
    machine: str
    """The running kernel's boot id, the same in all its containers; otherwise the host name."""
    process: int
    slurm_job: str
    """Cluster and job id, empty outside Slurm …"""
    slurm_restart: int
    """… and how often Slurm has restarted it."""
    since: float
    """Seconds since the epoch."""

    def __str__(self) -> str:
        slurm = f", Slurm job {self.slurm_job.rpartition('/')[2]}" if self.slurm_job else ""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"{self.job} (process {self.process} on {self.host}{slurm}, since {since})"


@contextmanager
def owned(folder: Path, job: str, *, group: str = "", wait: float = 0.0) -> Iterator[None]:
    """Own `folder` inside the context; the folder is created if it doesn't exist.

    Args:
        job: this process's job, for the message that others get, such as `segdist train`.
        group: owners in the same group can write at the same time, such as the tasks of one array; "": exclusive.
        wait: seconds to wait for other owners to end before refusing.

    Raises:
        UserError: another job, named in the message, writes there; or the folder can't be written.
    """
    own = _describe(job, group)
    record = _enter(folder, own, time.monotonic() + wait)
    done = threading.Event()
    heart = threading.Thread(target=_beat, args=(record, folder, done), daemon=True, name="owner's heartbeat")
    heart.start()
    try:
        yield
    finally:
        done.set()
        heart.join()
        record.leave()


class _OwnRecord:
    """This process's record, locked until it leaves."""

    def __init__(self, folder: Path, record: Record) -> None:
        # Names sort by age, so usually the first to arrive gets in.
        name = f"{time.time_ns():020}-{uuid.uuid4().hex[:8]}"
        self.path = folder / OWNERS / f"{name}{ASKING}"
        draft = self.path.with_suffix(".draft")
        self._made = not folder.exists()
        for attempts_left in reversed(range(ATTEMPTS)):
            try:
                draft.parent.mkdir(parents=True, exist_ok=True)
                self._file = draft.open("x")
                break
            except (FileNotFoundError, FileExistsError):  # the last owner just removed the folder of records
                if not attempts_left:
                    raise
                time.sleep(0.01)
        json.dump(stamped(asdict(record), OWNER_VERSION), self._file)
        self._file.flush()
        if locks is None:
            self._file.close()  # Windows can't rename open files
        else:
            with contextlib.suppress(OSError):  # a file system without locks: the heartbeat decides
                locks.lockf(self._file, locks.LOCK_EX | locks.LOCK_NB)  # forked children don't inherit it
        # It appears complete and locked.
        draft.rename(self.path)
        _held[self.path] = record

    def own(self) -> None:
        """Turn the request into ownership."""
        record = _held.pop(self.path)
        self.path = self.path.rename(self.path.with_suffix(OWNING))
        _held[self.path] = record

    def leave(self) -> None:
        """Remove the record, and the folder of records if it was the last."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
            self.path.parent.rmdir()  # fails if there are others
            if self._made:
                self.path.parent.parent.rmdir()  # fails if the job has put something there
        _held.pop(self.path, None)
        self._file.close()


def _enter(folder: Path, own: Record, deadline: float) -> _OwnRecord:
    while True:
        try:
            record = _OwnRecord(folder, own)
        except OSError as error:
            raise UserError(
                f"{folder}: can't be written ({error.strerror or error}, in {OWNERS}/, where each job that writes "
                "there registers); make room or get write access, or choose another folder"
            ) from None
        try:
            conflict = _conflict(record, own)
            if conflict is None:
                record.own()
                return record
        except BaseException:
            record.leave()
            raise
        record.leave()  # and try again with a new name, so that waiting jobs take turns
        if time.monotonic() >= deadline:
            raise _refusal(folder, conflict)
        time.sleep(LOOK_EVERY)


def _conflict(record: _OwnRecord, own: Record) -> Record | None:
    """The owner that keeps `record` out; None if there is none. Removes records of dead owners."""
    while True:
        waiting = renamed = False
        for path in sorted(record.path.parent.glob("*-*")):
            if path.suffix not in (ASKING, OWNING) or path == record.path:
                continue
            other = _read(path)
            if other is None:
                renamed = renamed or not path.exists()
                continue
            if own.group and other.group == own.group:
                if _is_dead_here(path, other, own):
                    path.unlink(missing_ok=True)
                continue
            if not _lives(path, other, own, record.path):
                renamed = renamed or not path.exists()
                path.unlink(missing_ok=True)
            elif path.suffix == OWNING or path.name < record.path.name:
                return other
            else:
                waiting = True  # it backs off when it sees us, or already owns the folder, which we will see
        if renamed:
            continue  # a record that is gone may own the folder by now, under a name that the listing lacks
        if not waiting:
            return None
        time.sleep(0.01)


def _is_dead_here(path: Path, other: Record, own: Record) -> bool:
    """True if it is immediately certain that an owner in the same group is gone."""
    return path not in _held and other.machine == own.machine and _is_locked(path) is False


def _lives(path: Path, other: Record, own: Record, own_path: Path) -> bool:
    if path in _held:
        return True
    if other.slurm_job and other.slurm_job == own.slurm_job and other.slurm_restart < own.slurm_restart:
        return False
    if other.machine == own.machine:
        locked = _is_locked(path)
        if locked is not None:
            return locked
    return _beats(path, other, own_path)


def _beats(path: Path, other: Record, own_path: Path) -> bool:
    """True if an owner on another machine is alive; finding out takes up to `STALE_AFTER` seconds."""
    try:
        first = path.stat().st_mtime_ns
        os.utime(own_path)
        # Both times are the file server's, so the machines' clocks don't have to agree.
        silent = (own_path.stat().st_mtime_ns - first) / 1e9
        if silent > 2 * BEAT:
            warn(
                f"{path.parent.parent}: {other} gave its last sign of life {silent:.0f} s ago; "
                f"it counts as dead after {STALE_AFTER:.0f} s"
            )
        started = time.monotonic()
        while silent + time.monotonic() - started < STALE_AFTER:
            time.sleep(LOOK_EVERY)
            if path.stat().st_mtime_ns != first:
                return True
    except FileNotFoundError:
        pass  # it has left in the meantime
    return False


def _beat(record: _OwnRecord, folder: Path, done: threading.Event) -> None:
    while not done.wait(BEAT):
        try:
            os.utime(record.path)
        except FileNotFoundError:
            others = list(record.path.parent.glob(f"*{OWNING}"))
            if others and not done.is_set():
                # This process was silent for so long that another took over; it must not write any more.
                show_error(f"{folder}: another job has taken over, because this process gave no sign of life")
                os._exit(FAILED)
        except OSError:
            pass  # the file server is temporarily unreachable


def _refusal(folder: Path, other: Record) -> UserError:
    return UserError(
        f"{folder}: in use by {other}; wait for its end, or choose another folder. If its machine is down, the same "
        f"command works {STALE_AFTER:.0f} s after its last sign of life"
    )


def _describe(job: str, group: str) -> Record:
    environ = os.environ
    slurm = environ.get("SLURM_JOB_ID", "")
    return Record(
        job=job,
        group=group,
        host=socket.gethostname(),
        machine=_machine(),
        process=os.getpid(),
        slurm_job=f"{environ.get('SLURM_CLUSTER_NAME', '')}/{slurm}" if slurm else "",
        slurm_restart=int(environ.get("SLURM_RESTART_COUNT") or 0),
        since=round(time.time(), 3),
    )


def _machine() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _read(path: Path) -> Record | None:
    if path in _held:
        return _held[path]
    try:
        values: JsonObject = json.loads(path.read_text())
    except (OSError, ValueError):
        return None  # gone in the meantime, or a partial record left by a crash of the file server
    read_version(values, OWNER_VERSION, str(path))
    return Record(**{item.name: values[item.name] for item in fields(Record)})


def _is_locked(path: Path) -> bool | None:
    """True if a living process holds the lock on a record; None if locks aren't supported."""
    if locks is None:
        return None
    try:
        with path.open("rb") as file:
            # Shared, so that two processes checking at the same time don't mistake each other for the owner.
            locks.lockf(file, locks.LOCK_SH | locks.LOCK_NB)
        return False
    except FileNotFoundError:
        return False
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return None
