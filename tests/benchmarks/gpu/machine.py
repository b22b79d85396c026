"""The machine under test: its device, its clock, the time that a part may still take."""

import os
import platform
import statistics
import time
from collections.abc import Callable

import torch


class Machine:
    """One GPU, or the CPU in the tiny form.

    Args:
        seconds: that a part may take.
        tiny: use the CPU and small sizes even where there is a GPU.
    """

    def __init__(self, seconds: float, *, tiny: bool) -> None:
        self.tiny = tiny or not torch.cuda.is_available()
        self.device = torch.device("cpu" if self.tiny else "cuda")
        self.cores = len(os.sched_getaffinity(0))
        self._began = time.monotonic()
        self._seconds = seconds

    def __str__(self) -> str:
        versions = f"Python {platform.python_version()}, torch {torch.__version__}, {self.cores} cores"
        if self.tiny:
            return f"TINY FORM ON THE CPU: this tries the script, the figures mean nothing ({versions})"
        memory = torch.cuda.get_device_properties(self.device).total_memory / 2**30
        return f"{torch.cuda.get_device_name(self.device)}, {memory:.0f} GiB ({versions})"

    def spent(self) -> float:
        """Seconds since the part began."""
        return time.monotonic() - self._began

    def has_time(self, what: str, seconds: float) -> bool:
        """Whether `seconds` are left; says what is left out where they are not."""
        if self.spent() + seconds <= self._seconds:
            return True
        print(f"  LEFT OUT for want of time: {what}", flush=True)
        return False

    def wait(self) -> None:
        """Until the device has done what it was asked for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds_per_call(self, call: Callable[[], object], warm_up: int = 3, at_least: float = 0.5) -> float:
        """Seconds of a call: the median of three stretches of about `at_least` seconds together."""
        for _ in range(warm_up):
            call()
        self.wait()
        count = 1
        stretch = self._stretch(call, count)
        while stretch < at_least / 6 and not self.tiny:
            count *= 2
            stretch = self._stretch(call, count)
        return statistics.median(self._stretch(call, count) for _ in range(1 if self.tiny else 3)) / count

    def free(self) -> None:
        """Give back memory that nothing holds any more, so that the next case finds the card empty."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def _stretch(self, call: Callable[[], object], count: int) -> float:
        self.wait()
        began = time.perf_counter()
        for _ in range(count):
            call()
        self.wait()
        return time.perf_counter() - began
