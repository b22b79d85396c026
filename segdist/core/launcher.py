"""Between a rank and its launcher: recording why the rank failed, and ending the rank when the launcher dies."""

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
"""Environment variable: the file in which a failing rank records why. All ranks of a job share it."""
LAUNCHER = "SEGDIST_LAUNCHER"
"""Environment variable: id of the process without which this one must not continue."""
REASON_VERSION = 1
LOOK_EVERY = 1.0
"""Seconds between checks for the launcher, if the kernel doesn't report its end."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def note_reason(reason: str, rank: int = 0) -> None:
    """Record why this rank failed, if requested; the first rank to do so is the cause."""
    path = os.environ.get(REASON_FILE)
    if not path:
        return
    text = f"rank {rank}: {reason}" if rank else reason
    try:
        with Path(path).open("x") as file:
            file.write(json.dumps(stamped({"reason": text, "time": round(time.time(), 3)}, REASON_VERSION)) + "\n")
    except OSError:
        pass  # another rank was faster, or the disk is full; the message is still printed


def read_reason(path: Path) -> str:
    """The reason recorded in `path`; "" if there is none."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return ""
    read_version(values, REASON_VERSION, str(path))
    return str(values["reason"])


def signal_reason(number: int) -> str:
    """Describe what killed a process that was ended by signal `number`."""
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    causes = {
        "SIGKILL": "the system was out of memory, or someone killed it",
        "SIGSEGV": "a crash in compiled code",
        "SIGBUS": "a mapped file was truncated, or shared memory was full",
        "SIGABRT": "a library gave up",
        "SIGILL": "compiled for another kind of CPU",
    }
    return f"killed by {name}" + (f" ({causes[name]})" if name in causes else "")


def end_with_launcher() -> None:
    """Kill this process when its launcher dies: orphaned ranks would write at the same time as the next start.

    Launchers are torchrun's agent and the process named by `LAUNCHER`. A shell is not one: its jobs may outlive it.
    Killing is safe, because everything that a job resumes from is always on disk.
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
