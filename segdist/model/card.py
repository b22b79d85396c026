"""The card in a model file: everything but the weights that inference needs. Read without torch.

It is stored in the file's own metadata, so that weights and card can't be mixed up.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from segdist.core.errors import UserError
from segdist.core.fold import folds_of
from segdist.core.formats import stamped, unstamped
from segdist.core.model_header import CARD_KEY, read_metadata
from segdist.core.parsing import from_dict, to_dict
from segdist.core.paths import BEST_MODEL, LAST_MODEL
from segdist.model.config import ModelConfig
from segdist.model.share_intervals import ShareIntervals
from shards.manifest import ClassInfo
from shards.manifest_rules import LARGEST_PATCH, MOST_CLASSES

CARD_VERSION = 5
"""5: share_intervals; 4: held_out; 3: temperature; 2: scale, tile, overlap, flips; 1: the U-Net is
segdist.model.unet:UNet; 0, without a number: segdist.unet:UNet."""


Flips = Literal["none", "sideways", "all"]
"""No flip; left and right; also upside down, and both."""


@dataclass(frozen=True)
class HeldOut:
    """The images that a run of a cross-validation was not trained on: those of a fold (`segdist.core.fold`)."""

    fold: int
    folds: int
    seed: int
    data: str
    """Fingerprint of the shard set."""


@dataclass(frozen=True)
class ModelCard:
    """Everything but the weights that inference needs."""

    model: ModelConfig
    classes: tuple[ClassInfo, ...]
    channels: int
    dtype: str
    """dtype of the stored images that the model was trained on, "uint8" or "uint16"."""
    patch: int
    """Side of the training patches in pixels; the default tile side."""
    mean: tuple[float, ...]
    """Per channel, in stored units: the model sees (x - mean) / std."""
    std: tuple[float, ...]
    stride_multiple: int
    """Image sides that the model takes are multiples of this."""
    run: str = ""
    epoch: int = 0
    step: int = 0
    score: float | None = None
    """Mean IoU on the validation patches."""
    scale: int = 1
    """Images are reduced by this factor, by area mean, before the model sees them; probabilities are enlarged again."""
    tile: int = 0
    """Tile side in pixels of the reduced image, where inference isn't told otherwise; 0: `patch`."""
    overlap: float = 0.5
    """Fraction of a tile shared with its neighbor, likewise."""
    flips: Flips = "none"
    """Over which flips of a tile probabilities are averaged, likewise."""
    temperature: float = 1.0
    """Logits are divided by it before the softmax; 1: not calibrated."""
    share_intervals: ShareIntervals | None = None
    """Of the shares that classes have of an image; None: not known."""
    held_out: HeldOut | None = None
    """For a run of a cross-validation."""


CALIBRATED = ("temperature", "share_intervals")
"""What `segdist calibrate` puts into a card."""


def card_text(card: ModelCard) -> str:
    """The card as JSON, as stored in the metadata of model files and ONNX files."""
    return json.dumps(stamped(to_dict(card), CARD_VERSION))


def read_card(path: Path) -> ModelCard:
    """The card of a model file; reads the header only.

    Raises:
        UserError: the file is missing, damaged, was not written by segdist, or by a later one.
    """
    metadata = read_metadata(path)
    if CARD_KEY not in metadata:
        raise UserError(f"{path}: a safetensors file without segdist's card; give a file that `segdist train` wrote")
    try:
        values: Any = json.loads(metadata[CARD_KEY])
    except ValueError as error:
        raise UserError(f"{path}: its card is damaged ({error})") from None
    card = from_dict(ModelCard, unstamped(values, CARD_VERSION, str(path)), str(path))
    if impossible := _impossible(card):
        raise UserError(f"{path}: its card is damaged or forged: {impossible}")
    return card


def _impossible(card: ModelCard) -> str:
    """What no model that segdist has trained can have; "" for nothing."""
    statistics = (*card.mean, *card.std)
    rules = {
        f"{len(card.classes)} classes": 1 <= len(card.classes) <= MOST_CLASSES,
        f"{card.channels} channels with {len(card.mean)} means and {len(card.std)} deviations": (
            1 <= card.channels == len(card.mean) == len(card.std)
        ),
        f"statistics {statistics}": all(math.isfinite(value) for value in statistics) and min(card.std, default=0) >= 0,
        f"dtype {card.dtype!r}": card.dtype in ("uint8", "uint16"),
        f"patches of {card.patch} pixels": 1 <= card.patch <= LARGEST_PATCH,
        f"a temperature of {card.temperature}": math.isfinite(card.temperature) and card.temperature > 0,
        f"image sides in multiples of {card.stride_multiple}": 1 <= card.stride_multiple <= LARGEST_PATCH,
        f"intervals {card.share_intervals}": (
            card.share_intervals is None or card.share_intervals.possible(len(card.classes))
        ),
    }
    return next((what for what, holds in rules.items() if not holds), "")


def resolve_model_path(path: Path, first: str = BEST_MODEL, second: str = LAST_MODEL) -> Path:
    """The model file that `path` means: itself, or the `first`, else the `second` model of a run folder."""
    if not path.is_dir():
        return path
    for name in (first, second):
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path}: a folder without {BEST_MODEL} or {LAST_MODEL}; has the training run written a model yet?")


def resolve_ensemble(names: Sequence[Path]) -> list[Path]:
    """The model files that `names` mean, in order; a folder of folds means the models that their trainings ended with.

    Not the folds' best models: those were chosen by the images that the fold is to be judged on.

    Raises:
        UserError: a folder holds no model.
    """
    files = []
    for name in names:
        folds = [] if any((name / file).is_file() for file in (BEST_MODEL, LAST_MODEL)) else folds_of(name)
        files += [resolve_model_path(fold, LAST_MODEL, BEST_MODEL) for fold in folds] or [resolve_model_path(name)]
    return files


def read_agreeing_cards(files: Sequence[Path]) -> list[ModelCard]:
    """The cards of models whose probabilities can be averaged.

    Raises:
        UserError: as `read_card`; or two of them differ in classes, images or working scale.
    """
    cards = [read_card(file) for file in files]
    for file, card in zip(files[1:], cards[1:], strict=True):
        for what, (there, here) in {
            "classes": tuple(", ".join(info.name for info in one.classes) for one in (cards[0], card)),
            "channels": (cards[0].channels, card.channels),
            "dtype of the images": (cards[0].dtype, card.dtype),
            "scale of the images": (f"1/{cards[0].scale}", f"1/{card.scale}"),
        }.items():
            if there != here:
                raise UserError(
                    f"models that can't be averaged, because their {what} differ: {files[0]} has {there}, {file} has "
                    f"{here}; give models of one shard set"
                )
    return cards


def inference_settings(models: Sequence[Path]) -> dict[str, Any]:
    """What the cards of the models wish for tile, overlap and flips; of several, the most careful wish.

    Raises:
        UserError: there is no such model, or they don't agree with each other.
    """
    cards = read_agreeing_cards(resolve_ensemble(models))
    return {
        "tile": max(card.tile or card.patch for card in cards),
        "overlap": max(card.overlap for card in cards),
        "flips": any(card.flips != "none" for card in cards),
    }
