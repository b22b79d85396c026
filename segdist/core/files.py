"""Write files atomically: they appear under their names only when complete."""

import codecs
import contextlib
import errno
import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from segdist.core.errors import UserError
from segdist.core.json_values import JsonObject

try:
    import fcntl

    locks: ModuleType | None = fcntl
except ImportError:  # Windows, where leftovers stay
    locks = None

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""A disk that is full, over the user's quota, or read-only."""

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")

LONGEST_NAME = 255
"""Maximum bytes in a file name on all common file systems."""


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write to a temporary name next to `path`, fsync, rename; on any error `path` is left unchanged.

    Raises:
        OSError: the file can't be written; its `filename` is `path`, not the temporary name.
    """
    with _errors_name(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file, temporary = _locked_file(path)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if locks is None:
                    file.close()  # Windows can't rename open files
                temporary.replace(path)  # still locked, so that it isn't mistaken for a leftover
            _fsync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """Make OS errors name `path` if they name no file, or its temporary file."""
    try:
        yield
    except OSError as error:
        named = error.filename
        if error.errno is not None and (named is None or _TEMPORARY.fullmatch(Path(os.fsdecode(named)).name)):
            error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Turn the errors of a full disk into a UserError; only one rank may hit them, so it must report them itself.

    Raises:
        UserError: the disk of `folder` is full, over the quota, or read-only.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        told = UserError(no_room(error.filename or folder, error))
        told.on_this_rank = True
        raise told from None


def no_room(where: object, error: OSError) -> str:
    """The message for a full disk."""
    return f"{where}: {error.strerror}; make room there; the same command then resumes, keeping finished work"


def remove_leftovers(folder: Path, *, deep: bool = False) -> None:
    """Remove the leftovers of killed `whole_file` writers in `folder`: temporary files that no living process holds.

    Args:
        deep: also in subfolders.
    """
    if locks is None:
        return
    places = islice(os.walk(folder), None if deep else 1)
    for path in [Path(place, name) for place, _, names in places for name in names if _TEMPORARY.fullmatch(name)]:
        try:
            with path.open("rb") as file:
                # The writer's lock dies with it, no matter which machine it ran on.
                locks.flock(file, locks.LOCK_EX | locks.LOCK_NB)
                path.unlink()
        except OSError:
            continue  # still being written, or this file system doesn't support locks


def _locked_file(path: Path) -> tuple[BinaryIO, Path]:
    """A new temporary file next to `path`, locked so that it isn't mistaken for a leftover."""
    while True:
        temporary = path.with_name(_temporary_name(path.name))
        file = temporary.open("xb")
        if locks is None:
            return file, temporary
        try:
            locks.flock(file, locks.LOCK_EX | locks.LOCK_NB)
        except BlockingIOError:  # mistaken for a leftover before it was locked
            file.close()
            continue
        except OSError:
            pass  # a file system without locks, where leftovers aren't removed either
        if os.fstat(file.fileno()).st_nlink:
            return file, temporary
        file.close()


def _temporary_name(name: str) -> str:
    """Hidden and unique; long names are truncated to fit into 255 bytes."""
    return f".{os.fsencode(name)[:220].decode(errors='ignore')}.{uuid.uuid4().hex[:8]}.tmp"


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused, since JSON has neither."""
    with whole_file(path) as file:
        file.write((json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_json_rows(path: Path, value: JsonObject, key: str) -> None:
    """Like `write_json`, but with one line per item of the long list `value[key]`, which comes last.

    Takes a third of the time, and the memory of one line.
    """
    others = {name: item for name, item in value.items() if name != key}
    around = json.dumps({**others, key: []}, indent=2, allow_nan=False).removesuffix("]\n}")
    encode = json.JSONEncoder(allow_nan=False).encode  # Python's fast encoder can't indent
    with whole_file(path) as file:
        file.write(around.encode())
        for number, row in enumerate(value[key]):
            file.write(f"{',' if number else ''}\n    {encode(row)}".encode())
        file.write(b"\n  ]\n}\n")


def read_text(path: Path) -> str:
    """Read a user's text file in any common encoding: UTF-8, UTF-16, or Windows code page 1252.

    Raises:
        UserError: the file can't be read, or isn't text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from None
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encodings = ["utf-16"]
    elif b"\0" in content[:2]:
        encodings = ["utf-16-be" if content.startswith(b"\0") else "utf-16-le"]
    else:
        # Text in another encoding is almost never valid UTF-8 by chance.
        encodings = ["utf-8-sig", "cp1252"]
    for encoding in encodings:
        with contextlib.suppress(UnicodeDecodeError):
            text = content.decode(encoding)
            if "\0" not in text:
                return text
    raise UserError(f"{path}: not a text file (tried {' and '.join(encodings)}); save it as UTF-8")


def size_and_time(path: Path) -> tuple[int, int]:
    """Size of a file in bytes and its modification time in nanoseconds; for a folder (a Zarr image), over all files in
    it."""
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
