"""The U-Net prepared for inference: what it computes, and which models stay as they are."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import segdist.model.prepared
from segdist.model.precision import Precision
from segdist.model.prepared import PreparedUNet, prepared
from segdist.model.unet import UNet

CPU, FP32 = torch.device("cpu"), Precision("fp32", "for the test")


def trained(**options: Any) -> UNet:
    """A U-Net in eval mode whose batch norms have statistics, factors and shifts, and whose classes are decided."""
    torch.manual_seed(2)
    model = UNet(2, 3, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.3, 2)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    nn.init.normal_(model.head.weight)
    return model


@pytest.mark.parametrize("deep", [0, 10**9], ids=["places changed", "only folded"])
@pytest.mark.parametrize("upsampling", ["bilinear", "transposed"])
@pytest.mark.parametrize(
    ("width", "depth", "height", "across"), [(16, 4, 96, 96), (3, 2, 20, 36), (5, 1, 2, 2), (4, 3, 8, 40)]
)
@torch.inference_mode()
def test_results_differ_by_float32_rounding_only(
    width: int, depth: int, height: int, across: int, upsampling: str, deep: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segdist.model.prepared, "DEEP", deep)
    model = trained(width=width, depth=depth, upsampling=upsampling)
    tiles = torch.randn(3, 2, height, across)
    exact = copy.deepcopy(model).double()(tiles.double())
    plain, found = model(tiles), PreparedUNet(model)(tiles)
    assert not torch.equal(found, plain)  # else it would be another run of the plain model
    rounding = (plain - exact).abs().max()
    assert (found - exact).abs().max() <= 4 * rounding
    assert (found - exact).abs().max() <= 1e-5 * exact.abs().max()
    assert (found.softmax(1) - plain.softmax(1)).abs().max() < 1e-4


@torch.inference_mode()
def test_the_memory_layout_of_weights_and_tiles_is_free() -> None:
    tiles = torch.randn(2, 2, 32, 32)
    plain = PreparedUNet(trained())
    last: Any = PreparedUNet(trained()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    expected = plain(tiles)
    torch.testing.assert_close(last(tiles.contiguous(memory_format=torch.channels_last)), expected)
    torch.testing.assert_close(last(tiles), expected)


@torch.inference_mode()
def test_the_given_model_stays_as_it_is() -> None:
    model, tiles = trained(width=4), torch.randn(1, 2, 32, 32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = model(tiles)
    assert isinstance(prepared(model, CPU, FP32), PreparedUNet)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(tiles), expected)


def test_preparing_adds_no_weights_but_biases() -> None:
    """So that an ensemble needs no more memory than the weights of its members."""
    model = trained()
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    expected = sum(conv.weight.numel() + conv.out_channels for conv in convolutions)
    assert sum(tensor.numel() for tensor in PreparedUNet(model).state_dict().values()) == expected


def test_images_of_unsupported_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        PreparedUNet(trained(width=2))(torch.rand(1, 2, 96, 100))


class Doubled(UNet):
    """A user's own U-Net."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * 2


@pytest.mark.parametrize(
    "model",
    [
        Doubled(1, 2, width=2),
        UNet(1, 2, width=2, norm="group"),
        UNet(1, 2, width=2, norm="instance"),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)),
        nn.Sequential(UNet(1, 2, width=2)),
    ],
    ids=["subclass", "group norm", "instance norm", "own module", "wrapped"],
)
def test_other_models_run_as_they_are(model: nn.Module) -> None:
    assert prepared(model, CPU, FP32) is model


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_only_fp32_on_a_cpu_is_prepared(device: str, precision: Any) -> None:
    model = trained(width=2)
    found = prepared(model, torch.device(device), Precision(precision, "for the test"))
    assert (found is not model) == (device == "cpu" and precision == "fp32")
