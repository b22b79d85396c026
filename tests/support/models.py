"""User-style models, one per situation; factories for `--model.factory tests.support.models:NAME`."""

import urllib.error
from typing import Any

import torch
from torch import nn


def conv(before: int, after: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())


class Plain(nn.Module):
    """Returns logits, as expected."""

    stride_multiple = 1

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.body, self.head = conv(in_channels, 4), nn.Conv2d(4, num_classes, 1)
        self.extra_head = nn.Conv2d(4, num_classes, 1)

    def forward(self, images: torch.Tensor) -> Any:
        """Uses both heads."""
        features = self.body(images)
        return self.head(features) + self.extra_head(features)


class Dictionary(Plain):
    """Like torchvision: main output, auxiliary output at half the size, and an extra entry."""

    def forward(self, images: torch.Tensor) -> Any:
        """A dictionary in which the main output comes last."""
        features = self.body(images)
        small = nn.functional.avg_pool2d(features, 2)
        return {"features": features[:, :3], "aux": self.extra_head(small), "out": self.head(features)}


class DeepSupervision(Plain):
    """Returns a tuple during training and logits otherwise."""

    def forward(self, images: torch.Tensor) -> Any:
        """Main and auxiliary output of the same size."""
        features = self.body(images)
        return (self.head(features), [self.extra_head(features)]) if self.training else self.head(features)


class UnusedHead(Plain):
    """Has parameters without gradients."""

    def forward(self, images: torch.Tensor) -> Any:
        """Leaves out the second head."""
        return self.head(self.body(images))


class Quarter(Plain):
    """Returns logits of a quarter of the size."""

    stride_multiple = 4

    def forward(self, images: torch.Tensor) -> Any:
        """(B, K, H / 4, W / 4)."""
        return super().forward(nn.functional.avg_pool2d(images, 4))


class OneMore(Plain):
    """Returns one channel too many."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes + 1)


class Nothing(Plain):
    """Returns no tensor."""

    def forward(self, images: torch.Tensor) -> Any:
        """None."""
        return


class Pooled(Plain):
    """Image pooling with batch norm, as in ASPP."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, images: torch.Tensor) -> Any:
        """Adds the pooled features."""
        features = self.body(images)
        return self.head(features + self.pool(features)) + self.extra_head(features)


class ExtraState(Plain):
    """Has state that is not a tensor."""

    def get_extra_state(self) -> Any:
        """A dictionary."""
        return {"version": 1}

    def set_extra_state(self, state: Any) -> None:
        """Nothing."""


class Tied(Plain):
    """Two heads with shared weights."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes)
        self.extra_head.weight = self.head.weight


def pretrained(in_channels: int, num_classes: int, weights: str | None = "everything") -> nn.Module:
    """Tries to download."""
    if weights is not None:
        raise urllib.error.URLError("Temporary failure in name resolution")
    return Plain(in_channels, num_classes)


def broken(in_channels: int, num_classes: int) -> nn.Module:
    """Has a bug."""
    raise ZeroDivisionError("division by zero")
