"""Which network: segdist's U-Net, or any factory that a config names by import path."""

import importlib
import inspect
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from segdist.core.errors import UserError

if TYPE_CHECKING:
    from torch import nn

UNET = "segdist.model.unet:UNet"
CLASS_COUNT_NAMES = ("out_channels", "classes", "num_classes", "n_classes")

JsonTable = Annotated[
    dict[str, Any],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=lambda words: json.loads(words[0]),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [json.dumps(value)],
    ),
]


@dataclass(frozen=True)
class ModelConfig:
    """The network. The U-Net's settings apply to the default factory only."""

    factory: str = UNET
    """Import path `package.module:callable`; called with in_channels, the number of classes under the name that its
    signature has (out_channels, classes, num_classes or n_classes) and kwargs. It must return logits."""
    kwargs: JsonTable = field(default_factory=dict)
    """Further keyword arguments for the factory: a TOML table, or JSON on the command line."""
    stride_multiple: int = 0
    """Image sides must be multiples of this; 0: the network's attribute `stride_multiple`, else 32."""
    width: int = 0
    """U-Net: channels of the first level, doubled at every level; 0: 64 as in the original on a GPU, 16 on a CPU."""
    depth: int = 4
    """U-Net: number of times that the resolution is halved."""
    norm: Literal["batch", "group", "instance"] = "batch"
    """U-Net: normalization layer. Batch norm depends on the batch that a rank sees; group norm doesn't."""
    upsampling: Literal["bilinear", "transposed"] = "bilinear"
    """U-Net: bilinear interpolation or a transposed convolution on the way up."""


def build_model(config: ModelConfig, channels: int, classes: int) -> "nn.Module":
    """The network that `config` describes, freshly initialized by torch's global generator.

    Args:
        channels: channels of the input images.
        classes: number of classes, which is the number of output channels.

    Returns:
        A module float32 (B, channels, H, W) → logits (B, classes, H, W).

    Raises:
        UserError: the factory can't be imported or doesn't take its arguments.
    """
    if config.factory == UNET:
        from segdist.model.unet import UNet

        return UNet(
            channels,
            classes,
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
        model: nn.Module = factory(**{"in_channels": channels, name: classes, **config.kwargs})
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
