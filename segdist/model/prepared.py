"""The U-Net prepared for inference on a CPU: the same function with fewer operations.

- In eval mode, batch norm is linear in each channel, so it is folded into the convolution before it.
- A decoder's first convolution adds what it makes of the skip connection and of the upsampled level below. For the
  latter, convolution and upsampling change places, since both are linear: each of its 3 x 3 taps is a 1 x 1 convolution
  of the level below, which has a quarter of the pixels; the results are upsampled, shifted to their places and summed.
  Along an axis, these three steps are one product with a matrix. It is small deep in the U, where sides are short.

The results differ from the plain U-Net's by float32 rounding.
Shapes: B batch, S channels of the skip connection, C of the level below, D of the result, h w sides of the level below.
"""

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from segdist.model.precision import Precision
from segdist.model.unet import UNet, encoded

DEEP = 4
"""Channels per row from which changing places is faster, as measured with widths 16 and 32, tiles of 96 and 256."""


def prepared(model: nn.Module, device: torch.device, precision: Precision) -> nn.Module:
    """The module to run in place of `model`: a `PreparedUNet` if it is a U-Net with batch norm, on a CPU in fp32.

    Args:
        model: in eval mode on `device`; later changes to its weights don't reach a `PreparedUNet`.
    """
    # A subclass may compute something else. In half precision, folded weights would be rounded differently.
    if type(model) is UNet and model.norm == "batch" and device.type == "cpu" and precision.name == "fp32":
        return PreparedUNet(model)
    return model


class PreparedUNet(nn.Module):
    """float32 (B, C, H, W) → logits (B, K, H, W) of `unet`, which has batch norms; for inference only."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(map(_folded, unet.encoders))
        self.decoders = nn.ModuleList(map(_Decoder, unet.upsamplings, map(_folded, unet.decoders)))
        self.head = unet.head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, K, H, W) of images (B, C, H, W)."""
        *skips, x = encoded(images, self.encoders)
        for decoder in self.decoders:
            x = decoder(skips.pop(), x)
        logits: torch.Tensor = self.head(x)
        return logits


class _Decoder(nn.Module):
    """A skip connection (B, S, 2h, 2w) and the level below (B, C, h, w) → (B, D, 2h, 2w)."""

    def __init__(self, upsampling: nn.Module, convolutions: nn.Sequential) -> None:
        super().__init__()
        self.upsampling, self.rest = upsampling, convolutions[1:]
        first: Any = convolutions[0]  # Any: torch doesn't declare the items' types
        weight: torch.Tensor = first.weight
        skipped = len(weight)  # S = D
        self.skipped = _convolution(weight[:, :skipped], first.bias)
        # (D, C, down, across) → (across, down, D; C), the order in which `_upsampled` sums taps.
        self.taps = _convolution(weight[:, skipped:].permute(3, 2, 0, 1).flatten(0, 2)[..., None, None], None)

    def forward(self, skip: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
        """See the class."""
        x = self.skipped(skip)
        if isinstance(self.upsampling, nn.Upsample) and below.shape[1] >= DEEP * max(below.shape[2:]):
            x += _upsampled(self.taps(below))
        else:
            weight = self.taps.weight.view(3, 3, x.shape[1], -1).permute(2, 3, 1, 0)
            x += functional.conv2d(self.upsampling(below), weight, padding=1)
        result: torch.Tensor = self.rest(x)
        return result


def _upsampled(taps: torch.Tensor) -> torch.Tensor:
    """Upsample the taps (B, 9 D, h, w) of a 3 x 3 convolution, shift them to their places and sum: (B, D, 2h, 2w)."""
    batch, _, height, width = taps.shape
    rows = taps.permute(0, 2, 3, 1).reshape(batch * height, width * 3, -1)
    rows = torch.matmul(_axis(width), rows).view(batch, height, 2 * width, 3, -1)
    columns = rows.transpose(2, 3).reshape(batch, height * 3, -1)
    return torch.matmul(_axis(height), columns).view(batch, 2 * height, 2 * width, -1).permute(0, 3, 1, 2)


@cache
def _axis(side: int) -> torch.Tensor:
    """The matrix (2 side, side x 3) that upsamples three taps along an axis, shifts and sums them."""
    upsampling = functional.interpolate(torch.eye(side)[None], scale_factor=2.0, mode="linear")[0].T
    padded = functional.pad(upsampling, (0, 0, 1, 1))  # with zeros, as the convolution pads its input
    return torch.stack([padded[:-2], padded[1:-1], padded[2:]], dim=2).flatten(1)


def _folded(block: Any) -> nn.Sequential:  # Any: as in `_Decoder`
    """Convolutions, batch norms and activations, without the batch norms; folded in float64."""
    layers: list[nn.Module] = []
    for conv, norm, activation in zip(block[::3], block[1::3], block[2::3], strict=True):
        constants = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        mean, variance, factor, shift = (constant.double() for constant in constants)
        folded = fuse_conv_bn_weights(conv.weight.double(), None, mean, variance, norm.eps, factor, shift)
        layers += [_convolution(*(tensor.float() for tensor in folded)), activation]
    return nn.Sequential(*layers)


def _convolution(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Conv2d:
    """A convolution with these values, which keeps the sides of its input."""
    outputs, inputs, side, _ = weight.shape
    conv = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=bias is not None, device="meta")
    values = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    conv.load_state_dict({name: value.detach().contiguous() for name, value in values.items()}, assign=True)
    return conv.requires_grad_(False)
