"""All shards of a split mapped into one range of addresses, so that a record's place is one number.

A batch gathered from single mappings costs a call per sample; from one range it is one `numpy.take`. The range is
reserved first, without memory behind it; each shard's file is laid into its place when it is first used. The places
begin at multiples of both the page and the record, so that the whole range is one array of records.
"""

import ctypes
import math
import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_MAP_FIXED = 0x10  # these two are the same on Linux and macOS; Python has no names for them
_PROT_NONE = 0
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)

Bytes = NDArray[np.uint8]


class MappedShards:
    """Files in one array of records; nothing is read before it is used."""

    def __init__(self, sizes: Sequence[int], stride: int, open_shard: Callable[[int], Path]) -> None:
        """`sizes`: bytes of each file; `stride`: bytes of a record.

        `open_shard(number)` is called before a shard is first used; it returns the file, which must have that size.
        """
        unit = math.lcm(stride, mmap.PAGESIZE)
        ends = np.cumsum([-(-size // unit) * unit for size in sizes], dtype=np.int64)
        self._starts = np.concatenate([np.zeros(1, np.int64), ends])[: len(sizes)]
        self._sizes, self._open = list(sizes), open_shard
        self.first_row = self._starts // stride
        """Row in `rows` of each shard's first record."""
        total = max(int(ends[-1]) if len(ends) else 0, unit)
        self._address = _map(0, total, _PROT_NONE, mmap.MAP_ANONYMOUS, -1)
        memory = (ctypes.c_uint8 * total).from_address(self._address)
        # Views of the array keep `memory`, and with it the mapping, alive.
        weakref.finalize(memory, _libc.munmap, self._address, total)
        self._bytes: Bytes = np.ctypeslib.as_array(memory)
        self._bytes.flags.writeable = False
        self.rows: Bytes = self._bytes.reshape(-1, stride)
        """Every record, (rows, stride). Only rows of shards that `require` has seen may be touched."""
        self._mapped = np.zeros(len(sizes), bool)
        self._left = len(sizes)

    def require(self, shards: NDArray[np.int64]) -> None:
        """See to it that the records of `shards` can be read."""
        if self._left and not self._mapped[shards].all():
            for number in np.unique(shards[~self._mapped[shards]]).tolist():
                self.content(number)

    def content(self, number: int) -> Bytes:
        """All bytes of one shard's file."""
        start, size = int(self._starts[number]), self._sizes[number]
        if not self._mapped[number]:
            path = self._open(number)
            handle = os.open(path, os.O_RDONLY)
            try:
                # Reading behind the end of a file that is too short would kill the process.
                if os.fstat(handle).st_size != size:
                    raise OSError(f"{path}: {os.fstat(handle).st_size} bytes instead of {size}")
                _map(self._address + start, size, mmap.PROT_READ, _MAP_FIXED, handle)
            finally:
                os.close(handle)  # a mapping needs no open file
            self._mapped[number] = True
            self._left = int(np.count_nonzero(~self._mapped))
        return self._bytes[start : start + size]


def _map(address: int, size: int, protection: int, flags: int, handle: int) -> int:
    place = _libc.mmap(address, size, protection, mmap.MAP_PRIVATE | flags, handle, 0)
    if place == _FAILED:
        error = ctypes.get_errno()
        raise OSError(error, f"mapping {size} bytes: {os.strerror(error)} (sysctl vm.max_map_count limits mappings)")
    return int(place)
