"""A trained network in one file: safetensors weights with a card that says how to use them.

The card stands in the file's own metadata, so that weights and card can't be mixed up.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors

from segdist.core.errors import UserError
from segdist.core.files import whole_file
from segdist.core.parsing import from_dict, to_dict
from segdist.model.factory import ModelConfig, build_model
from shards.manifest import ClassInfo

if TYPE_CHECKING:
    import torch
    from torch import nn

CARD_KEY = "segdist"
BEST, LAST = "best.safetensors", "last.safetensors"


@dataclass(frozen=True)
class ModelCard:
    """What inference needs to know beside the weights."""

    model: ModelConfig
    classes: tuple[ClassInfo, ...]
    channels: int
    dtype: str
    """dtype of the stored images that the network was trained on, "uint8" or "uint16"."""
    patch: int
    """Side of the training patches in pixels; the default tile side."""
    mean: tuple[float, ...]
    """Per channel, in stored units: the network sees (x - mean) / std."""
    std: tuple[float, ...]
    stride_multiple: int
    """Image sides that the network takes are multiples of this."""
    run: str = ""
    epoch: int = 0
    step: int = 0
    score: float | None = None
    """Mean IoU on the validation patches."""


def save_model(path: Path, state: dict[str, "torch.Tensor"], card: ModelCard) -> None:
    """Write weights and card to `path`, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    data = save_safetensors(tensors, metadata={CARD_KEY: json.dumps(to_dict(card))})
    with whole_file(path) as file:
        file.write(data)


def read_card(path: Path) -> ModelCard:
    """The card of a model file; reads the header only.

    Raises:
        UserError: the file is missing, damaged, or was not written by segdist.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise UserError(f"{path}: no such model file") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged, or no safetensors file ({error})") from None
    if CARD_KEY not in metadata:
        raise UserError(f"{path}: a safetensors file without segdist's card; give a file that `segdist train` wrote")
    return from_dict(ModelCard, json.loads(metadata[CARD_KEY]), str(path))


def load_model(path: Path | str, device: str = "cpu") -> tuple["nn.Module", ModelCard]:
    """The network, in eval mode on `device`, and its card.

    Args:
        path: a model file, or a run folder (its best model).

    Raises:
        UserError: there is no such file, it is damaged, or its weights don't fit the network that its card names.
    """
    file = resolve_model_path(Path(path))
    card = read_card(file)
    model = build_model(card.model, card.channels, len(card.classes))
    from safetensors.torch import load_file

    try:
        model.load_state_dict(load_file(file, device=str(device)))
    except (RuntimeError, SafetensorError) as error:
        raise UserError(f"{file}: the weights don't fit {card.model.factory}: {error}") from None
    return model.to(device).eval(), card


def resolve_model_path(path: Path) -> Path:
    """The model file that `path` means: itself, or the best (else the last) model of a run folder."""
    if not path.is_dir():
        return path
    for name in (BEST, LAST):
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path}: a folder without {BEST} or {LAST}; has the training run written a model yet?")
