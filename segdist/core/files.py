"""Files that appear under their names only when they are whole."""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write to a temporary name beside `path`, fsync, rename; on any error `path` is left as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _fsync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, whole or not at all. NaN and infinity are refused: they are no JSON."""
    with whole_file(path) as file:
        file.write((json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def size_and_time(path: Path) -> tuple[int, int]:
    """Bytes of a file and when it was last changed, in nanoseconds; of a folder (a Zarr image) over all in it."""
    status = path.stat()
    if not path.is_dir():
        return status.st_size, status.st_mtime_ns
    inside = [item.stat() for item in path.rglob("*") if item.is_file()]
    newest = max([status.st_mtime_ns, *(item.st_mtime_ns for item in inside)])
    return sum(item.st_size for item in inside), newest


def _fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
