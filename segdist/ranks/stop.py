"""Graceful shutdown: a signal sets a flag, and all ranks agree on the step after which they stop (or save)."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist

from segdist.core.terminal import warn
from segdist.core.waiting import stop_requested
from segdist.ranks.process_group import Ranks

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT") if hasattr(signal, name)]
"""Slurm and torchrun send some of these; Windows doesn't have all."""
SECOND_INTERRUPT_AFTER = 1.0
"""Seconds. torchrun forwards a Ctrl-C to workers that already got it from the terminal; that still counts as one."""


class StopRequest:
    """Whether this process was asked to stop, and whether the ranks agreed to.

    Agreeing takes no waiting: the flags are reduced during a training step and read after the next one.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.signal: signal.Signals | None = None
        self._interrupted_at = 0.0
        self._pending: dist.Work | None = None
        self._flags = torch.zeros(2, dtype=torch.int32)

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Handle the signals inside the context, then restore the previous handlers."""
        stop_requested.clear()
        if threading.current_thread() is not threading.main_thread():
            yield self  # Python delivers signals to the main thread only, which is the caller's own
            return
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def agreed(self, save: bool) -> tuple[bool, bool]:
        """Whether to stop and whether to save now: the same answer on all ranks after the same step.

        Stop if any rank was asked to; save if any rank's `save` was true. Collective: call once per step.
        """
        if self.ranks.world_size == 1:
            return self.signal is not None, save
        stop_now = save_now = False
        if self._pending is not None:
            self.ranks.at("flag of a stop")
            self._pending.wait()
            stop_now, save_now = (bool(value) for value in self._flags.tolist())
        if not stop_now:
            # A request granted now is not repeated.
            self._flags = torch.tensor([self.signal is not None, save and not save_now], dtype=torch.int32)
            # A CPU tensor, reduced through gloo even with NCCL, so that reading it never waits for the GPU.
            self._pending = dist.all_reduce(self._flags, op=dist.ReduceOp.MAX, async_op=True)
        return stop_now, save_now

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        stop_requested.set()  # ends the waits in `patiently`
        if number == signal.SIGINT:
            if self._interrupted_at and now - self._interrupted_at > SECOND_INTERRUPT_AFTER:
                os._exit(130)
            self._interrupted_at = self._interrupted_at or now
        if self.signal is None:
            self.signal = signal.Signals(number)
            if self.ranks.is_main:
                warn(f"{self.signal.name}: stopping after this step, with a checkpoint (Ctrl-C again to stop at once)")
