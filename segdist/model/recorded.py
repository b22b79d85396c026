"""GPU work recorded as a CUDA graph and replayed: for small batches, launching kernels takes longer than running them.

A U-Net's training step has several hundred kernels, and a CPU takes 5 to 15 µs to launch one. A graph launches them all
at once. The kernels and their order are the same as without a graph, and so are the bits.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch

FIRST_CALLS = 2
"""Calls before recording, in which libraries choose kernels and allocate workspaces; a rehearsal makes as many."""

Result = TypeVar("Result")


class Recorded(Generic[Result]):
    """Records a computation after its first calls, and replays it for inputs of the same shapes.

    Args:
        what: name of the work, for the warning if it can't be recorded.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._shapes: list[torch.Size] = []
        self._left = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._impossible = False

    def __call__(self, compute: Callable[..., Result], *inputs: torch.Tensor) -> Result:
        """The result of `compute(*inputs)`; its tensors are valid until the next call.

        Args:
            compute: the same at every call; works only on the GPU and never synchronizes with it.
            inputs: tensors on the GPU.
        """
        shapes = [tensor.shape for tensor in inputs]
        if shapes != self._shapes:
            self._shapes, self._left, self._graph = shapes, FIRST_CALLS, None
        if self._graph is None and not self._left and not self._impossible:
            self._record(compute, inputs)
        if self._graph is None:
            self._left = max(0, self._left - 1)
            return compute(*inputs)
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        self._graph.replay()
        return self._result

    def _record(self, compute: Callable[..., Result], inputs: tuple[torch.Tensor, ...]) -> None:
        # The graph has its own memory pool; memory that the first calls left cached would be held twice.
        torch.cuda.empty_cache()
        self._inputs = [tensor.clone() for tensor in inputs]
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may use the GPU while recording: batches are copied during the steps.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._result = compute(*self._inputs)
        except RuntimeError as error:
            self._impossible = True
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            # Imported here, because `segdist.predict` loads this module and must not wait for rich.
            from segdist.core.terminal import warn

            warn(f"{self.what} can't be recorded as a CUDA graph ({reason}), so it runs more slowly")
            return
        self._graph = graph
