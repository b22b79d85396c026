"""Between a rank and the process that started it: the reason of a failure, and an end when the launcher is gone."""

import ctypes
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from segdist.core.exit_codes import LOST_PEERS
from segdist.core.formats import read_version, stamped

REASON_FILE = "SEGDIST_REASON_FILE"
"""Environment variable: the file in which a rank that fails says why. All ranks of a job share it."""
LAUNCHER = "SEGDIST_LAUNCHER"
"""Environment variable: number of the process without which this one must not go on."""
REASON_VERSION = 1
LOOK_EVERY = 1.0
"""Seconds between two looks for the launcher, where the kernel doesn't tell."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def note_reason(reason: str, rank: int = 0) -> None:
    """Say why this rank fails, where somebody wants to know; the first rank that says so is the cause."""
    path = os.environ.get(REASON_FILE)
    if not path:
        return
    text = f"rank {rank}: {reason}" if rank else reason
    try:
        with Path(path).open("x") as file:
            file.write(json.dumps(stamped({"reason": text, "time": round(time.time(), 3)}, REASON_VERSION)) + "\n")
    except OSError:
        pass  # somebody was quicker, or the disk is full, which the message on the screen may say


def read_reason(path: Path) -> str:
    """What a rank noted in `path`; "" if none did."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return ""
    read_version(values, REASON_VERSION, str(path))
    return str(values["reason"])


def signal_reason(number: int) -> str:
    """In words for a person: what a process died of that was ended by signal `number`."""
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    causes = {
        "SIGKILL": "the system was out of memory, or somebody killed it",
        "SIGSEGV": "a crash in compiled code",
        "SIGBUS": "a file that it had mapped became shorter, or shared memory was full",
        "SIGABRT": "a library gave up",
        "SIGILL": "compiled for another kind of CPU",
    }
    return f"killed by {name}" + (f" ({causes[name]})" if name in causes else "")


def end_with_launcher() -> None:
    """Have this process killed when the one that launched it dies: ranks that go on alone would write with the next.

    Launchers are torchrun's agent and the process that `LAUNCHER` names. A shell is none: its jobs may outlive it.
    What a job resumes from is on the disk at any time.
    """
    parent = os.getppid()
    named = os.environ.get(LAUNCHER) == str(parent)
    if not named and not ("TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ):
        return
    if not _killed_by_kernel():
        threading.Thread(target=_watch, args=(parent,), daemon=True, name="launcher's watch").start()
    # It may have died before we could ask.
    elif os.getppid() != parent:
        os._exit(LOST_PEERS)


def _killed_by_kernel() -> bool:
    """Linux: SIGKILL for this process when its parent is gone."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) == 0)
    except (OSError, AttributeError):
        return False


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY)
    os._exit(LOST_PEERS)
