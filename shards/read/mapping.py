"""Map all shards of a split into one address range, so that a record's position is a single number.

Gathering a batch from separate mappings takes one call per sample; from one range, it takes a single `numpy.take`. The
range is reserved first, without memory behind it; each shard's file is mapped to its place when it is first used. The
places start at multiples of both the page and the record size, so the whole range is one array of records. If the
system can't map files to given addresses (Windows), shards are read into place instead.
"""

import ctypes
import math
import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.read.bus_error import name_file_of

_MAP_FIXED = 0x10  # these two are the same on Linux and macOS; Python doesn't name them
_PROT_NONE = 0
_FAILED = ctypes.c_void_p(-1).value


def _c_library() -> Any:  # Any: its functions are looked up by name
    """The C library that has `mmap`; None on systems without it."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        library.mmap.restype = ctypes.c_void_p
        library.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
        library.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    except (OSError, TypeError, AttributeError):
        return None
    return library


_libc = _c_library()

Bytes = NDArray[np.uint8]


class MappedShards:
    """Files as one array of records; nothing is read before it is used."""

    def __init__(self, sizes: Sequence[int], stride: int, open_shard: Callable[[int], Path]) -> None:
        """`sizes`: bytes of each file; `stride`: bytes of a record.

        `open_shard(number)` is called before a shard is first used; it returns the file, which must have that size.
        """
        unit = math.lcm(stride, mmap.PAGESIZE)
        ends = np.cumsum([-(-size // unit) * unit for size in sizes], dtype=np.int64)
        self._starts = np.concatenate([np.zeros(1, np.int64), ends])[: len(sizes)]
        self._sizes, self._open = list(sizes), open_shard
        self.first_row = self._starts // stride
        """Each shard's first row in `rows`."""
        total = max(int(ends[-1]) if len(ends) else 0, unit)
        if _libc:
            self._address = _map(0, total, _PROT_NONE, mmap.MAP_ANONYMOUS, -1)
            memory = (ctypes.c_uint8 * total).from_address(self._address)
            # Views of the array keep `memory`, and so the mapping, alive.
            weakref.finalize(memory, _libc.munmap, self._address, total)
            self._bytes: Bytes = np.ctypeslib.as_array(memory)
            self._bytes.flags.writeable = False
        else:
            self._bytes = np.zeros(total, np.uint8)
        self.rows: Bytes = self._bytes.reshape(-1, stride)
        """Every record, (rows, stride). Only access rows of shards passed to `require`."""
        self._mapped = np.zeros(len(sizes), bool)
        self._paths: dict[int, Path] = {}
        self._left = len(sizes)

    def require(self, shards: NDArray[np.int64]) -> None:
        """Make the records of `shards` readable."""
        if self._left and not self._mapped[shards].all():
            for number in np.unique(shards[~self._mapped[shards]]).tolist():
                self.content(number)

    def file_at(self, address: int) -> Path | None:
        """The file mapped at an address of this process; None if it is none of these."""
        for number, path in self._paths.items():
            offset = address - self._address - int(self._starts[number])
            if 0 <= offset < self._sizes[number] + mmap.PAGESIZE:  # whole pages are mapped; the next file starts later
                return path
        return None

    def content(self, number: int) -> Bytes:
        """All bytes of one shard's file."""
        start, size = int(self._starts[number]), self._sizes[number]
        if not self._mapped[number]:
            path = self._open(number)
            with path.open("rb") as file:  # a mapping outlives its open file
                # Reading past the end of a truncated mapped file would kill the process.
                found = os.fstat(file.fileno()).st_size
                if found != size:
                    raise OSError(f"{file.name}: {found} bytes instead of {size}")
                if _libc:
                    _map(self._address + start, size, mmap.PROT_READ, _MAP_FIXED, file.fileno())
                else:
                    file.readinto(self._bytes[start : start + size].data)
            self._mapped[number] = True
            if _libc:  # a mapping can be truncated later; what was read into memory can't
                self._paths[number] = path
                name_file_of(self)
            self._left = int(np.count_nonzero(~self._mapped))
        return self._bytes[start : start + size]


def _map(address: int, size: int, protection: int, flags: int, handle: int) -> int:
    place = _libc.mmap(address, size, protection, mmap.MAP_PRIVATE | flags, handle, 0)
    if place == _FAILED:
        error = ctypes.get_errno()
        raise OSError(error, f"mapping {size} bytes: {os.strerror(error)} (sysctl vm.max_map_count limits mappings)")
    return int(place)
