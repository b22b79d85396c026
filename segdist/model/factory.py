"""Building models: segdist's U-Net, or any factory given by its import path."""

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

from segdist.core.errors import UserError
from segdist.core.json_values import Keywords
from segdist.model.config import UNET, ModelConfig

if TYPE_CHECKING:
    from torch import nn

CLASS_COUNT_NAMES = ("out_channels", "classes", "num_classes", "n_classes")
PRETRAINED_NAMES = ("pretrained", "pretrained_backbone", "weights", "weights_backbone", "encoder_weights")
"""Arguments that make torchvision, timm, MONAI or segmentation_models_pytorch load pretrained weights."""


def build_model(
    config: ModelConfig, channels: int, num_classes: int, *, folders: Sequence[str] = (os.curdir,)
) -> "nn.Module":
    """Build the model that `config` describes, initialized with torch's global generator.

    Args:
        channels: channels of the input images.
        num_classes: number of classes, and so of output channels.
        folders: where to look for the factory's module if no installed package has its name.

    Returns:
        A module that maps float32 (B, channels, H, W) to logits (B, num_classes, H, W).

    Raises:
        UserError: the factory can't be imported, rejects its arguments, can't load its files, or fails.
    """
    if config.factory == UNET:
        from segdist.model.unet import UNet  # loads torch, which a config alone doesn't need

        return UNet(
            channels,
            num_classes,
            width=config.width,
            depth=config.depth,
            norm=config.norm,
            upsampling=config.upsampling,
            **config.kwargs,
        )
    factory = _import_factory(config.factory, folders)
    parameters = inspect.signature(factory).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    name = next((name for name in CLASS_COUNT_NAMES if name in parameters), "classes" if takes_any else None)
    if name is None or not (takes_any or "in_channels" in parameters):
        raise UserError(
            f"model.factory {config.factory}: its signature {inspect.signature(factory)} must have in_channels and one "
            f"of {', '.join(CLASS_COUNT_NAMES)}; wrap it in a function that has them"
        )
    try:
        model: nn.Module = factory(**{"in_channels": channels, name: num_classes, **config.kwargs})
    except TypeError as error:
        raise UserError(f"model.factory {config.factory}: {error}; set model.kwargs") from error
    except OSError as error:
        # urllib, requests and huggingface_hub also raise this without a network.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"model.factory {config.factory}: it can't read or download its files ({reason}); download pretrained "
            f"weights once where there is a network, or turn them off in model.kwargs ({', '.join(PRETRAINED_NAMES)})"
        ) from None
    except UserError:
        raise
    except Exception as error:  # a user's factory may raise anything
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"model.factory {config.factory}: {type(error).__name__}: {' '.join(str(error).split())[:300]} "
            f"({frame.filename}, line {frame.lineno})"
        ) from error
    return model


def without_pretrained(config: ModelConfig, folders: Sequence[str] = (os.curdir,)) -> ModelConfig:
    """`config` with pretrained weights turned off, for a model whose weights come from a file."""
    if config.factory == UNET:
        return config
    parameters = inspect.signature(_import_factory(config.factory, folders)).parameters
    off: Keywords = {}
    for name in PRETRAINED_NAMES:
        default = parameters[name].default if name in parameters else inspect.Parameter.empty
        asked = config.kwargs.get(name, default)
        if asked is not inspect.Parameter.empty and asked:
            off[name] = False if asked is True else None
    return replace(config, kwargs=config.kwargs | off)


def stride_multiple(config: ModelConfig, model: "nn.Module") -> int:
    """The number that image sides must be multiples of."""
    return config.stride_multiple or int(getattr(model, "stride_multiple", 32))


def _import_factory(path: str, folders: Sequence[str]) -> Any:  # Any: the user's; the caller checks its signature
    module_name, colon, name = path.partition(":")
    if not colon:
        raise UserError(f"model.factory {path}: write package.module:callable")
    try:
        return getattr(_import_module(module_name, folders), name)
    except ImportError as error:
        raise UserError(
            f"model.factory {path}: {error}; install the package in this environment, or start from the module's folder"
        ) from error
    except AttributeError:
        raise UserError(f"model.factory {path}: module {module_name} has no {name}") from None


def _import_module(name: str, folders: Sequence[str]) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module exists, but something that it imports doesn't
        # Appended, so that a local file never shadows an installed package; and permanently, because factories may
        # import more modules later.
        sys.path += [folder for folder in map(os.path.abspath, folders) if folder not in sys.path]
        importlib.invalidate_caches()
        return importlib.import_module(name)
