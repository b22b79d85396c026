"""The U-Net: shapes, settings and refusals."""

import pytest
import torch
from torch import nn

from segdist.core.errors import UserError
from segdist.model.config import ModelConfig
from segdist.model.factory import build_model
from segdist.model.unet import UNet


@pytest.mark.parametrize("norm", ["batch", "group", "instance"])
@pytest.mark.parametrize("upsampling", ["bilinear", "transposed"])
def test_logits_have_the_size_of_the_images(norm: str, upsampling: str) -> None:
    model = UNet(2, 5, width=4, depth=3, norm=norm, upsampling=upsampling)
    assert model(torch.rand(2, 2, 24, 40)).shape == (2, 5, 24, 40)


@pytest.mark.parametrize(("channels", "classes", "depth"), [(1, 2, 1), (3, 3, 2), (7, 21, 4)])
def test_any_number_of_channels_classes_and_levels_works(channels: int, classes: int, depth: int) -> None:
    model = UNet(channels, classes, width=3, depth=depth)
    side = model.stride_multiple * 2
    assert model(torch.rand(2, channels, side, side)).shape == (2, classes, side, side)


def test_width_64_has_the_channels_of_the_original_u_net() -> None:
    model = build_model(ModelConfig(width=64), channels=1, num_classes=3)
    widths = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert widths[:10] == [64, 64, 128, 128, 256, 256, 512, 512, 1024, 1024]
    assert widths[-1] == 3


def test_it_returns_logits_not_probabilities() -> None:
    logits = UNet(1, 3, width=4)(torch.rand(1, 1, 32, 32))
    assert logits.min() < 0 or logits.max() > 1


def test_sizes_not_divisible_by_the_depth_factor_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        UNet(1, 3, width=2)(torch.rand(1, 1, 96, 100))


def test_every_weight_gets_a_gradient() -> None:
    model = UNet(1, 3, width=2, norm="group", upsampling="transposed")
    model(torch.rand(2, 1, 32, 32)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def small_model(in_channels: int, num_classes: int, hidden: int = 4) -> nn.Module:
    """A factory as a user would write it."""
    return nn.Sequential(nn.Conv2d(in_channels, hidden, 3, padding=1), nn.Conv2d(hidden, num_classes, 1))


def test_a_user_factory_builds_the_model() -> None:
    config = ModelConfig(factory="tests.segdist.model.test_unet:small_model", kwargs={"hidden": 6})
    model = build_model(config, channels=3, num_classes=2)
    assert model(torch.rand(1, 3, 8, 8)).shape == (1, 2, 8, 8)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("no.such.package:net", "no.such.package|No module"),
        ("segdist.model.unet:NoNet", "has no NoNet"),
        ("segdist.model.unet", "package.module:callable"),
        ("os.path:join", "must have in_channels"),
    ],
)
def test_a_broken_factory_is_named(factory: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(ModelConfig(factory=factory), channels=1, num_classes=2)


def test_wrong_keyword_arguments_of_a_factory_are_named() -> None:
    config = ModelConfig(factory="tests.segdist.model.test_unet:small_model", kwargs={"hiden": 6})
    with pytest.raises(UserError, match="hiden"):
        build_model(config, channels=1, num_classes=2)
