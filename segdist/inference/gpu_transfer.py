"""Keeping a GPU busy: image rows are read ahead in a thread, results travel back while later rows are computed.

On a CPU both are plain calls: there the model uses all cores, and another thread would only take turns with it.
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
"""Results on their way back from the GPU: one that is being copied, one that waits for its kernels."""


class ReadAhead:
    """Reads the rows below those that were asked for last, in a thread, before they are asked for."""

    def __init__(self, read: ReadWindow, height: int) -> None:
        self._read, self._height = read, height
        self._pool = ThreadPoolExecutor(1)
        self._next: tuple[tuple[int, int, int, int], Future[np.ndarray]] | None = None

    def __call__(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """As the `read` it was made with."""
        wanted = (top, bottom, left, right)
        ahead, self._next = self._next, None
        # Only one thread reads at a time: image files are no place for two.
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
    """Tensors on their way to the CPU, with a note that tells what they are."""

    def __init__(self, note: Note, tensors: dict[str, torch.Tensor]) -> None:
        self.note = note
        self._event: torch.cuda.Event | None = None
        self._tensors = tensors
        if any(tensor.is_cuda for tensor in tensors.values()):
            self._tensors = {name: _pinned_copy(tensor) for name, tensor in tensors.items()}
            self._event = torch.cuda.Event()
            self._event.record()

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays, once they are here."""
        if self._event is not None:
            self._event.synchronize()
        return {name: tensor.numpy() for name, tensor in self._tensors.items()}


def arrived(results: Iterable[Arriving[Note]], device: torch.device) -> Iterator[tuple[Note, dict[str, np.ndarray]]]:
    """Hand on results in order; on a GPU only when later ones are already under way."""
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
