"""Keeps a GPU busy: a thread reads image rows ahead, and results are copied back while later rows are computed.

On a CPU both are plain calls: the model already uses all cores, so another thread would only compete with it.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

import numpy as np
import torch

from segdist.inference.tiler import ReadWindow

Note = TypeVar("Note")

IN_FLIGHT = 2
"""Results in transit from the GPU: one being copied, one waiting for its kernels."""


class ReadAhead:
    """Prefetches the rows below those last requested, in a thread."""

    def __init__(self, read: ReadWindow, height: int) -> None:
        self._read, self._height = read, height
        self._pool = ThreadPoolExecutor(1)
        self._next: tuple[tuple[int, int, int, int], Future[np.ndarray]] | None = None

    def __call__(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Same as `read`."""
        wanted = (top, bottom, left, right)
        ahead, self._next = self._next, None
        # Only one thread reads at a time: image files aren't thread-safe.
        rows = ahead[1].result() if ahead and ahead[0] == wanted else self._pool.submit(self._read, *wanted).result()
        end = min(2 * bottom - top, self._height)
        if bottom < end:
            following = (bottom, end, left, right)
            self._next = (following, self._pool.submit(self._read, *following))
        return rows

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)


class Arriving(Generic[Note]):
    """Tensors being copied to the CPU, with a note that says what they are."""

    def __init__(self, note: Note, tensors: dict[str, torch.Tensor]) -> None:
        self.note = note
        self._event: torch.cuda.Event | None = None
        self._tensors = tensors
        if any(tensor.is_cuda for tensor in tensors.values()):
            self._tensors = {name: _pinned_copy(tensor) for name, tensor in tensors.items()}
            self._event = torch.cuda.Event()
            self._event.record()

    def arrays(self) -> dict[str, np.ndarray]:
        """Wait for the copies, and return them."""
        if self._event is not None:
            self._event.synchronize()
        return {name: tensor.numpy() for name, tensor in self._tensors.items()}


def arrived(results: Iterable[Arriving[Note]], device: torch.device) -> Iterator[tuple[Note, dict[str, np.ndarray]]]:
    """Yield results in order; on a GPU, only once later ones are in flight."""
    waiting: deque[Arriving[Note]] = deque()
    for result in results:
        waiting.append(result)
        if len(waiting) > (IN_FLIGHT if device.type == "cuda" else 0):
            first = waiting.popleft()
            yield first.note, first.arrays()
    for result in waiting:
        yield result.note, result.arrays()


def _pinned_copy(tensor: torch.Tensor) -> torch.Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    return host
