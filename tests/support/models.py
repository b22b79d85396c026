"""Models as users write them, each for one situation; factories for `--model.factory tests.support.models:NAME`."""

import urllib.error
from typing import Any

import torch
from torch import nn


def conv(before: int, after: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())


class Plain(nn.Module):
    """Logits, as it should be."""

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
    """As torchvision: main and auxiliary output, the latter at half the size, and something else."""

    def forward(self, images: torch.Tensor) -> Any:
        """A dictionary in which the main output comes last."""
        features = self.body(images)
        small = nn.functional.avg_pool2d(features, 2)
        return {"features": features[:, :3], "aux": self.extra_head(small), "out": self.head(features)}


class DeepSupervision(Plain):
    """A tuple while it is trained, logits afterwards."""

    def forward(self, images: torch.Tensor) -> Any:
        """Main and auxiliary output of one size."""
        features = self.body(images)
        return (self.head(features), [self.extra_head(features)]) if self.training else self.head(features)


class UnusedHead(Plain):
    """Parameters that get no gradient."""

    def forward(self, images: torch.Tensor) -> Any:
        """Without the second head."""
        return self.head(self.body(images))


class Quarter(Plain):
    """Logits of a quarter of the size."""

    stride_multiple = 4

    def forward(self, images: torch.Tensor) -> Any:
        """(B, K, H / 4, W / 4)."""
        return super().forward(nn.functional.avg_pool2d(images, 4))


class OneMore(Plain):
    """A channel too many."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes + 1)


class Nothing(Plain):
    """Returns no tensor."""

    def forward(self, images: torch.Tensor) -> Any:
        """None."""
        return


class Pooled(Plain):
    """Image pooling with batch norm, as ASPP has it."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, images: torch.Tensor) -> Any:
        """Adds what it has pooled."""
        features = self.body(images)
        return self.head(features + self.pool(features)) + self.extra_head(features)


class ExtraState(Plain):
    """State that is no tensor."""

    def get_extra_state(self) -> Any:
        """A dictionary."""
        return {"version": 1}

    def set_extra_state(self, state: Any) -> None:
        """Nothing."""


class Tied(Plain):
    """Two heads that share their weights."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes)
        self.extra_head.weight = self.head.weight


def pretrained(in_channels: int, num_classes: int, weights: str | None = "everything") -> nn.Module:
    """Wants to download."""
    if weights is not None:
        raise urllib.error.URLError("Temporary failure in name resolution")
    return Plain(in_channels, num_classes)


def broken(in_channels: int, num_classes: int) -> nn.Module:
    """Has a bug."""
    raise ZeroDivisionError("division by zero")
