"""Which model: segdist's U-Net, or any factory that a config names by import path."""

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from segdist.core.errors import UserError
from segdist.model.config import UNET, ModelConfig

if TYPE_CHECKING:
    from torch import nn

CLASS_COUNT_NAMES = ("out_channels", "classes", "num_classes", "n_classes")


def build_model(config: ModelConfig, channels: int, num_classes: int) -> "nn.Module":
    """The model that `config` describes, freshly initialized by torch's global generator.

    Args:
        channels: channels of the input images.
        num_classes: number of classes, which is the number of output channels.

    Returns:
        A module float32 (B, channels, H, W) → logits (B, num_classes, H, W).

    Raises:
        UserError: the factory can't be imported or doesn't take its arguments.
    """
    if config.factory == UNET:
        from segdist.model.unet import UNet

        return UNet(
            channels,
            num_classes,
            width=config.width,
            depth=config.depth,
            norm=config.norm,
            upsampling=config.upsampling,
            **config.kwargs,
        )
    factory = _import_factory(config.factory)
    parameters = inspect.signature(factory).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    name = next((name for name in CLASS_COUNT_NAMES if name in parameters), "classes" if takes_any else None)
    if name is None or not (takes_any or "in_channels" in parameters):
        raise UserError(
            f"model.factory {config.factory}: its signature {inspect.signature(factory)} must have in_channels and one "
            f"of {', '.join(CLASS_COUNT_NAMES)}; wrap it in a function of your own that has"
        )
    try:
        model: nn.Module = factory(**{"in_channels": channels, name: num_classes, **config.kwargs})
    except TypeError as error:
        raise UserError(f"model.factory {config.factory}: {error}; set model.kwargs") from error
    return model


def stride_multiple(config: ModelConfig, model: "nn.Module") -> int:
    """Image sides that `model` takes are multiples of this."""
    return config.stride_multiple or int(getattr(model, "stride_multiple", 32))


def _import_factory(path: str) -> Any:
    module_name, colon, name = path.partition(":")
    if not colon:
        raise UserError(f"model.factory {path}: write package.module:callable")
    try:
        return getattr(importlib.import_module(module_name), name)
    except ImportError as error:
        raise UserError(f"model.factory {path}: {error}; is the package installed in this environment?") from error
    except AttributeError:
        raise UserError(f"model.factory {path}: module {module_name} has no {name}") from None
