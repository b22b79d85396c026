"""On Linux, truncating a mapped file while it is being read kills the process with SIGBUS; name the file first.

Python can't handle this signal itself: its handlers only run after the failed instruction completes, which it never
does.
"""

import ctypes
import os
import signal
import sys
import weakref
from pathlib import Path
from typing import Protocol

from segdist.core.exit_codes import FAILED
from segdist.core.launcher import note_reason

_SA_SIGINFO = 4
_ADDRESS_AT = 16  # of si_addr in siginfo_t, on 64-bit Linux


class Mapped(Protocol):
    """Memory into which files are mapped."""

    def file_at(self, address: int) -> Path | None:
        """The file mapped at an address of this process; None if it is none of these."""


_known = weakref.WeakSet[Mapped]()
_installed: list[object] = []


class _SigAction(ctypes.Structure):
    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def name_file_of(mapped: Mapped) -> None:
    """From now on, report the file name on a bus error in the memory of `mapped`."""
    _known.add(mapped)
    if _installed or not sys.platform.startswith("linux") or sys.maxsize < 2**32:
        return
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(_on_bus_error)
    action = _SigAction(handler=ctypes.cast(handler, ctypes.c_void_p), flags=_SA_SIGINFO)
    ctypes.CDLL(None).sigaction(signal.SIGBUS, ctypes.byref(action), None)
    _installed.append(handler)  # C holds no reference


def _on_bus_error(number: int, info: int, context: int) -> None:
    address = ctypes.c_void_p.from_address(info + _ADDRESS_AT).value or 0
    for mapped in list(_known):
        path = mapped.file_at(address)
        if path is not None:
            reason = (
                f"{path}: was truncated, or became unreadable, while in use; copy or rebuild it, then run the "
                "same command again"
            )
            note_reason(reason)
            os.write(2, f"error: {reason}\n".encode())
            os._exit(FAILED)
    # Not our memory: restore the default handler and let the instruction fail again.
    default = _SigAction(handler=None, flags=0)
    ctypes.CDLL(None).sigaction(signal.SIGBUS, ctypes.byref(default), None)
