"""What models return: logits, or logits with auxiliary ones in a dictionary, a tuple or a list.

Torchvision's models return `{"out": …, "aux": …}`, those with deep supervision a tuple while they are trained, and
those of Hugging Face an object with `logits`. The main output is what is scored; auxiliary ones only add to the loss.
Shapes: B batch, K classes, H W pixels.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from segdist.core.errors import UserError

MAIN_NAMES = ("out", "logits", "main", "masks", "pred")
"""Names of the main output in a dictionary; where it has none of them, the first tensor is."""


class OutputError(UserError):
    """What the model returns can't be used; says what it must return."""


def split_outputs(outputs: Any, num_classes: int, size: tuple[int, int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Main logits (B, K, H, W) and auxiliary ones (B, K, h, w), in the order in which the model returns them.

    Args:
        size: (H, W) of the images.

    Raises:
        OutputError: there are no logits of K channels and of the images' size.
    """
    candidates = _tensors(outputs)
    if not candidates:
        raise OutputError(
            f"--model.factory: the model returns a {type(outputs).__name__} without a tensor; it must return logits, "
            "or a dictionary or tuple in which they come first"
        )
    name = next((name for name in MAIN_NAMES if name in candidates), next(iter(candidates)))
    main = candidates.pop(name)
    if main.ndim != 4 or main.shape[1] != num_classes:
        raise OutputError(
            f"--model.factory: the model returns {_shape(main)} for {num_classes} classes; it must return logits with "
            "a channel for each class: have the factory pass the number of classes, which it gets as num_classes (or "
            "classes, out_channels, n_classes), on to its last layer"
        )
    if tuple(main.shape[-2:]) != tuple(size):
        raise OutputError(
            f"--model.factory: the model returns maps of {main.shape[-2]} x {main.shape[-1]} for images of "
            f"{size[0]} x {size[1]}; it must return logits of the images' size: end it with "
            "torch.nn.functional.interpolate(…, size=images.shape[-2:]), or wrap it in a module that does"
        )
    # What else there is may be no logits at all, such as features or an attention map.
    return main, [other for other in candidates.values() if other.ndim == 4 and other.shape[1] == num_classes]


def main_logits(outputs: Any, num_classes: int, size: tuple[int, int]) -> torch.Tensor:
    """The main output alone; see `split_outputs`."""
    return split_outputs(outputs, num_classes, size)[0]


class MainOutput(nn.Module):
    """A model that returns its main output alone, (B, K, H, W)."""

    def __init__(self, model: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.model, self.num_classes = model, num_classes

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, K, H, W) of images (B, C, H, W)."""
        return main_logits(self.model(images), self.num_classes, (images.shape[-2], images.shape[-1]))


def _tensors(outputs: Any) -> dict[str, torch.Tensor]:
    """The floating-point tensors of what a model returns, by name or number, those in lists inside included."""
    if isinstance(outputs, torch.Tensor):
        return {"": outputs} if outputs.is_floating_point() else {}
    items = outputs.items() if isinstance(outputs, Mapping) else None
    if items is None and isinstance(outputs, list | tuple):
        names = getattr(outputs, "_fields", range(len(outputs)))
        items = zip(names, outputs, strict=True)  # type: ignore[assignment]
    if items is None:
        logits = getattr(outputs, "logits", None)
        return {"logits": logits} if isinstance(logits, torch.Tensor) else {}
    found: dict[str, torch.Tensor] = {}
    for name, value in items:
        found |= {f"{name}.{inner}".rstrip("."): tensor for inner, tensor in _tensors(value).items()}
    return found


def _shape(tensor: torch.Tensor) -> str:
    return f"{tensor.shape[1]} channels" if tensor.ndim == 4 else f"a tensor of {tensor.ndim} dimensions"
