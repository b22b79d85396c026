"""The machine under test: device, timing, and the time left for a part."""

import os
import platform
import statistics
import time
from collections.abc import Callable

import torch


class Machine:
    """One GPU, or the CPU in the tiny form.

    Args:
        seconds: time limit of a part.
        tiny: use the CPU and small sizes even with a GPU.
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
        """Whether `seconds` are left; if not, report what is skipped."""
        if self.spent() + seconds <= self._seconds:
            return True
        print(f"  SKIPPED for lack of time: {what}", flush=True)
        return False

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds_per_call(self, call: Callable[[], object], warm_up: int = 3, at_least: float = 0.5) -> float:
        """Seconds per call: the median of three measurements that total about `at_least` seconds."""
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
        """Release unused memory, so that the next case starts with an empty GPU."""
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
