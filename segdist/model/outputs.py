"""Model outputs: logits, alone or with auxiliary logits in a dictionary, tuple or list.

Torchvision's models return `{"out": …, "aux": …}`, models with deep supervision a tuple during training, and Hugging
Face's an object with `logits`. Only the main output is scored; auxiliary ones add to the loss.
Shapes: B batch, K classes, H W pixels.
"""

from collections.abc import Mapping

import torch
from torch import nn

from segdist.core.errors import UserError

MAIN_NAMES = ("out", "logits", "main", "masks", "pred")
"""Names of the main output in a dictionary; if none of them is present, the first tensor is used."""


class OutputError(UserError):
    """The model's output can't be used; the message says what it must return."""


def split_outputs(outputs: object, num_classes: int, size: tuple[int, int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Main logits (B, K, H, W), and auxiliary ones (B, K, h, w) in the model's order.

    Args:
        size: (H, W) of the images.

    Raises:
        OutputError: the main output doesn't have K channels or the size of the images.
    """
    candidates = _tensors(outputs)
    if not candidates:
        raise OutputError(
            f"--model.factory: the model returns a {type(outputs).__name__} that contains no tensor; it must return "
            "logits, or a dictionary or tuple with the logits first"
        )
    name = next((name for name in MAIN_NAMES if name in candidates), next(iter(candidates)))
    main = candidates.pop(name)
    if main.ndim != 4 or main.shape[1] != num_classes:
        raise OutputError(
            f"--model.factory: the model returns {_shape(main)} for {num_classes} classes; it must return one channel "
            "of logits per class: have the factory pass its argument num_classes (or classes, out_channels, "
            "n_classes) to the last layer"
        )
    if tuple(main.shape[-2:]) != tuple(size):
        raise OutputError(
            f"--model.factory: the model returns logits of {main.shape[-2]} x {main.shape[-1]} for images of "
            f"{size[0]} x {size[1]}; they must have the same size: end the model with "
            "torch.nn.functional.interpolate(…, size=images.shape[-2:]), or wrap it in a module that does"
        )
    # Other tensors may not be logits at all, such as features or an attention map.
    return main, [other for other in candidates.values() if other.ndim == 4 and other.shape[1] == num_classes]


def main_logits(outputs: object, num_classes: int, size: tuple[int, int]) -> torch.Tensor:
    """Only the main output; see `split_outputs`."""
    return split_outputs(outputs, num_classes, size)[0]


class MainOutput(nn.Module):
    """Wraps a model so that it returns only its main output, (B, K, H, W)."""

    def __init__(self, model: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.model, self.num_classes = model, num_classes

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, K, H, W) of images (B, C, H, W)."""
        return main_logits(self.model(images), self.num_classes, (images.shape[-2], images.shape[-1]))


def _tensors(outputs: object) -> dict[str, torch.Tensor]:
    """The floating-point tensors in a model's output, nested ones included, by name or number."""
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
