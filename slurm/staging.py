"""Copy a folder to each node's own disk before the job starts: one verified copy per node, for all its ranks.

Worthwhile if many epochs read a set from a slow or shared file system and it fits on the node's disk.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from pathlib import Path

from segdist.core.errors import UserError

CHUNK = 16 * 1024**2
PATIENCE = 3600.0
"""Seconds that the other ranks of a node wait for the copy."""

log = logging.getLogger(__name__)


def staged(source: Path, parent: str, local_rank: int) -> Path:
    """A verified copy of `source` inside `parent` on this node. Local rank 0 copies; the others wait.

    Args:
        source: folder to copy, with everything in it.
        parent: folder on the node's own disk; can contain environment variables such as `$TMPDIR`.

    Raises:
        UserError: `parent` contains an unset variable or is on a full disk, or the copy differs from the original.
    """
    expanded = os.path.expandvars(parent)
    if "$" in expanded:
        raise UserError(f"--stage-to {parent}: no such variable on {os.uname().nodename}; name a folder of the node")
    source = source.resolve()
    # Sets with the same name from different places must not collide, and an old copy must not pass for a rebuilt set.
    identity = hashlib.sha256(json.dumps([str(source), _listing(source)]).encode()).hexdigest()[:12]
    copy = Path(expanded) / f"{source.name}-{identity}"
    if local_rank == 0:
        _copy(source, copy)
    else:
        _wait_for(copy)
    return copy


def _copy(source: Path, copy: Path) -> None:
    if copy.exists():
        log.warning("using the existing copy of %s in %s", source, copy)
        return
    started = time.monotonic()
    draft = copy.with_name(f"{copy.name}.{os.getpid()}")
    try:
        total = sum(_copy_file(source / name, draft / name) for name, _, _ in _listing(source))
        draft.rename(copy)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        if copy.exists():  # another job on this node was faster
            return
        raise UserError(f"{source} can't be copied to {copy}: {error}; omit --stage-to, or free space") from None
    except UserError:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    log.warning("copied %s to %s: %.1f MB, verified, %.1f s", source, copy, total / 1e6, time.monotonic() - started)


def _copy_file(source: Path, target: Path) -> int:
    """Copy, read back, compare; returns the bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    read = hashlib.sha256()
    with source.open("rb") as original, target.open("wb") as copy:
        while chunk := original.read(CHUNK):
            read.update(chunk)
            copy.write(chunk)
        copy.flush()
        os.fsync(copy.fileno())
    with target.open("rb") as copy:
        written = hashlib.file_digest(copy, "sha256")
    if written.digest() != read.digest():
        raise UserError(f"{target} differs from {source} after copying: the node's disk or memory is damaged")
    return target.stat().st_size


def _wait_for(copy: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not copy.exists():
        # If the copying rank fails, srun also ends this one.
        if time.monotonic() > deadline:
            raise UserError(f"{copy} did not appear within {PATIENCE:.0f} s; the log of local rank 0 says why")
        time.sleep(0.2)


def _listing(folder: Path) -> list[tuple[str, int, int]]:
    """Relative path, size and modification time (ns) of all files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise UserError(f"{folder}: nothing there to copy to the nodes")
    return [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
