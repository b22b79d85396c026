"""U-Net (Ronneberger, Fischer, Brox 2015) for any number of channels and classes.

As is common today, the 3 x 3 convolutions are padded, so that the output has the input's size, and each is followed by
a normalization.
Shapes: B batch, C channels in, K classes, H W pixels.
"""

import torch
from torch import nn
from torch.nn import functional

from segdist.core.errors import UserError

GROUPS = 8
"""Groups of group norm; if these don't divide a level's channels, the largest smaller number that does."""


DEEPEST = 16
"""Largest depth: image sides are then multiples of 65,536 pixels."""


class UNet(nn.Module):
    """float32 (B, C, H, W) → logits (B, K, H, W); H and W must be multiples of `stride_multiple` = 2^depth.

    Args:
        in_channels: C.
        num_classes: K.
        width: channels at the first level, doubled at each level below.
        depth: number of times the resolution is halved.
        norm: "batch", "group" or "instance".
        upsampling: "bilinear" (interpolation) or "transposed" (a learned 2 x 2 convolution).

    Raises:
        UserError: `width` or `depth` below 1, or an unknown `norm` or `upsampling`.
        ValueError: in `forward`, if 2^depth doesn't divide H and W.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        width: int = 16,
        depth: int = 4,
        norm: str = "batch",
        upsampling: str = "bilinear",
    ) -> None:
        super().__init__()
        if width < 1 or not 1 <= depth <= DEEPEST:
            raise UserError(
                f"model.width {width}, model.depth {depth}: both must be at least 1, and the depth at most {DEEPEST}"
            )
        self.stride_multiple, self.norm = 2**depth, norm
        widths = [width * 2**level for level in range(depth + 1)]
        self.encoders = nn.ModuleList(
            _convolutions(before, after, norm) for before, after in zip([in_channels, *widths], widths, strict=False)
        )
        self.upsamplings = nn.ModuleList(_upsampling(below, above, upsampling) for above, below in _pairs(widths))
        # Inputs: the upsampled level below, concatenated with the skip connection.
        self.decoders = nn.ModuleList(
            _convolutions((below if upsampling == "bilinear" else above) + above, above, norm)
            for above, below in _pairs(widths)
        )
        self.head = nn.Conv2d(width, num_classes, kernel_size=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, K, H, W) of images (B, C, H, W)."""
        *skips, x = encoded(images, self.encoders)
        for upsampling, decoder in zip(self.upsamplings, self.decoders, strict=True):
            x = decoder(torch.cat([skips.pop(), upsampling(x)], dim=1))
        logits: torch.Tensor = self.head(x)
        return logits


def encoded(images: torch.Tensor, encoders: nn.ModuleList) -> list[torch.Tensor]:
    """The output of each encoder, from the top of the U down, for images (B, C, H, W).

    Raises:
        ValueError: H and W can't be halved from level to level.
    """
    multiple = 2 ** (len(encoders) - 1)
    if images.shape[-2] % multiple or images.shape[-1] % multiple:
        raise ValueError(
            f"an input of {images.shape[-2]} x {images.shape[-1]} pixels: both sides must be multiples of {multiple}"
        )
    levels: list[torch.Tensor] = []
    for encoder in encoders:
        levels.append(encoder(functional.max_pool2d(levels[-1], 2) if levels else images))
    return levels


def _pairs(widths: list[int]) -> list[tuple[int, int]]:
    """(above, below) from the bottom of the U upward."""
    return [(widths[level], widths[level + 1]) for level in reversed(range(len(widths) - 1))]


def _convolutions(before: int, after: int, norm: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, after):
        # No bias: the normalization would subtract it again.
        layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), _norm(after, norm), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _norm(channels: int, norm: str) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    if norm == "group":
        groups = next(groups for groups in range(min(GROUPS, channels), 0, -1) if channels % groups == 0)
        return nn.GroupNorm(groups, channels)
    raise UserError(f"model.norm {norm!r}: choose batch, group or instance")


def _upsampling(below: int, above: int, upsampling: str) -> nn.Module:
    if upsampling == "bilinear":
        return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    if upsampling == "transposed":
        return nn.ConvTranspose2d(below, above, kernel_size=2, stride=2)
    raise UserError(f"model.upsampling {upsampling!r}: choose bilinear or transposed")
