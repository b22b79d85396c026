"""Measure how long a rank works on a step before it needs the others, to tell a slow rank from those waiting for it.

From outside, all ranks take the same time for a step, because each waits for the slowest in every sum.
"""

import time

import torch


class OwnTime:
    """A stopwatch between `begin` and `end`, once per step; on a GPU it uses the GPU's clock, and nothing waits for
    it."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._began, self._seconds, self._steps = 0.0, 0.0, 0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._began_on_gpu: torch.cuda.Event

    def begin(self) -> None:
        """This rank has its batch and starts to work."""
        if self._on_gpu:
            self._began_on_gpu = _event()
        else:
            self._began = time.perf_counter()

    def end(self) -> None:
        """From here on, this rank needs the others."""
        if self._on_gpu:
            self._events.append((self._began_on_gpu, _event()))
        else:
            self._seconds += time.perf_counter() - self._began
        self._steps += 1

    def mean(self) -> float:
        """Mean seconds per step since the last call; 0 if there was no step. On a GPU, this waits for the last one."""
        for began, ended in self._events:
            ended.synchronize()
            self._seconds += began.elapsed_time(ended) / 1000
        mean = self._seconds / max(self._steps, 1)
        self._seconds, self._steps, self._events = 0.0, 0, []
        return mean


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
