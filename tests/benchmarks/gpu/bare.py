"""A training step in plain torch on one batch on the device: the baseline for the trainer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional

from segdist.model.unet import UNet
from segdist.training.augmentation import Augmenter
from segdist.training.config import AugmentConfig

CLASSES = 3


@dataclass(frozen=True)
class Shape:
    """Sizes of a step."""

    batch: int
    patch: int
    width: int

    def __str__(self) -> str:
        return f"batch {self.batch:3}, patch {self.patch:3}, width {self.width:2}"


@dataclass(frozen=True)
class Mode:
    """How a step is computed."""

    name: str
    precision: torch.dtype | None = torch.bfloat16
    channels_last: bool = True
    compile: dict[str, Any] | None = None
    graph: bool = False
    """The whole step as one CUDA graph."""


@dataclass
class BareStep:
    """Forward, backward and optimizer on a cached batch; `augment` flips and normalizes it in each step.

    The optimizer is that of the published method, fused; gradients are set to None, as usual.
    """

    shape: Shape
    mode: Mode
    device: torch.device
    augment: AugmentConfig | None = None
    step: Callable[[], None] = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        shape, device = self.shape, self.device
        memory = torch.channels_last if self.mode.channels_last else torch.contiguous_format
        self.model: Any = UNet(1, CLASSES, width=shape.width).to(device).to(memory_format=memory)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)
        stored = torch.randint(0, 256, (shape.batch, 1, shape.patch, shape.patch), device=device, dtype=torch.uint8)
        self._truth = torch.randint(0, CLASSES, (shape.batch, shape.patch, shape.patch), device=device)
        self._stored, self._memory = stored, memory
        self._images = self._normalized(stored.float())
        self._flips = torch.arange(shape.batch, device=device, dtype=torch.uint8) % 4
        self._augmenter = Augmenter(self.augment, 0) if self.augment is not None else None
        self._number = 0
        compiled = self.mode.compile
        self._call = self.model if compiled is None else torch.compile(self.model, **compiled)
        self.step = self._graphed() if self.mode.graph else self._plain

    def _plain(self) -> None:
        images, truth = self._images, self._truth
        if self._augmenter is not None:
            self._number += 1
            images, slots = self._normalized(self._stored.float()), range(self.shape.batch)
            images, truth = self._augmenter(images, truth, self._flips, 0, self._number, slots)
            images = images.contiguous(memory_format=self._memory)
        self.optimizer.zero_grad(set_to_none=True)
        self._forward_and_backward(images, truth)
        self.optimizer.step()

    def _forward_and_backward(self, images: torch.Tensor, truth: torch.Tensor) -> None:
        precision = self.mode.precision
        with torch.autocast(self.device.type, precision or torch.bfloat16, enabled=precision is not None):
            logits = self._call(images)
        functional.cross_entropy(logits.float(), truth.long()).backward()

    def _normalized(self, images: torch.Tensor) -> torch.Tensor:
        return ((images - 128.0) / 60.0).contiguous(memory_format=self._memory)

    def _graphed(self) -> Callable[[], None]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._plain()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            self._forward_and_backward(self._images, self._truth)
            self.optimizer.step()
        return graph.replay


def flops_of_step(shape: Shape) -> float:
    """Floating-point operations of a forward and backward pass; a multiply-add counts as two."""
    from torch.utils.flop_counter import FlopCounterMode

    model = UNet(1, CLASSES, width=shape.width)
    # One small sample on the CPU is enough, since the work of convolutions is proportional to the pixels.
    side = 32
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, side, side)).sum().backward()
    return float(counter.get_total_flops()) * shape.batch * (shape.patch / side) ** 2
