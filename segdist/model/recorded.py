"""Work for a GPU recorded as one CUDA graph and replayed: small batches take the GPU less time than starting them does.

A U-Net's training step is several hundred kernels, and a CPU takes 5 to 15 µs to start one. As a graph they are started
together. Kernels and their order, and so the bits, are those of the work without a graph.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch

FIRST_CALLS = 2
"""Calls without a graph, in which libraries choose kernels and take their workspace; a rehearsal has as many."""

Result = TypeVar("Result")


class Recorded(Generic[Result]):
    """Replays the work of the first calls for all later ones with inputs of the same shapes.

    Args:
        what: the work's name, for the warning where it can't be recorded.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._shapes: list[torch.Size] = []
        self._left = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._impossible = False

    def __call__(self, compute: Callable[..., Result], *inputs: torch.Tensor) -> Result:
        """What `compute(*inputs)` returns; its tensors are valid until the next call.

        Args:
            compute: the same at every call; asks the device for nothing and does all its work there.
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
        # The graph keeps its own memory: what the first calls left free would be held twice.
        torch.cuda.empty_cache()
        self._inputs = [tensor.clone() for tensor in inputs]
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may use the GPU meanwhile: batches are copied during the steps.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._result = compute(*self._inputs)
        except RuntimeError as error:
            self._impossible = True
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            # Here, because `segdist.predict` loads this module and must not wait for rich.
            from segdist.core.terminal import warn

            warn(f"{self.what} can't be recorded as a CUDA graph ({reason}) and is slower without")
            return
        self._graph = graph
