"""The machine's resources available to this process, on Linux and elsewhere."""

import importlib
import os
import platform
import sys
import time

STARTED = time.monotonic()
"""Approximate start time of this program: the clock when this module was first imported."""


def usable_cores() -> int:
    """Cores that this process can use: those it is bound to, if the system says so (Linux), otherwise all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_memory_mb() -> float:
    """Peak memory of this process so far, in MB; NaN if the system doesn't say (Windows)."""
    try:
        resource = importlib.import_module("resource")
    except ImportError:
        return float("nan")
    # In KiB on Linux, in bytes on macOS.
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def processor() -> str:
    """The processor's model, as precisely as the system reports it."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
