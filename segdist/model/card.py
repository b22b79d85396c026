"""The model card: everything that inference needs except the weights. Reading it doesn't require torch.

It is stored in the model file's metadata, so a card can't be paired with the wrong weights.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segdist.core.errors import UserError
from segdist.core.fold import folds_of
from segdist.core.formats import stamped, unstamped
from segdist.core.json_values import JsonObject, JsonValue
from segdist.core.model_header import CARD_KEY, read_metadata
from segdist.core.parsing import from_dict, to_dict
from segdist.core.paths import BEST_MODEL, LAST_MODEL
from segdist.model.config import ModelConfig
from segdist.model.share_intervals import ShareIntervals
from shards.manifest import ClassInfo
from shards.manifest_rules import LARGEST_PATCH, MOST_CLASSES

CARD_VERSION = 5
"""5: share_intervals; 4: held_out; 3: temperature; 2: scale, tile, overlap, flips; 1: the U-Net is
segdist.model.unet:UNet; 0 (no version number): segdist.unet:UNet."""


Flips = Literal["none", "sideways", "all"]
"""None; left-right; left-right, upside down, and both combined."""


@dataclass(frozen=True)
class HeldOut:
    """The fold (`segdist.core.fold`) whose images a cross-validation run was not trained on."""

    fold: int
    folds: int
    seed: int
    data: str
    """Fingerprint of the shard set."""


@dataclass(frozen=True)
class ModelCard:
    """Everything that inference needs except the weights."""

    model: ModelConfig
    classes: tuple[ClassInfo, ...]
    channels: int
    dtype: str
    """dtype of the training images as stored, "uint8" or "uint16"."""
    patch: int
    """Side of the training patches in pixels; the default tile side."""
    mean: tuple[float, ...]
    """Per channel, in stored units: the model sees (x - mean) / std."""
    std: tuple[float, ...]
    stride_multiple: int
    """Image sides must be multiples of this."""
    run: str = ""
    epoch: int = 0
    step: int = 0
    score: float | None = None
    """Mean IoU on the validation patches."""
    scale: int = 1
    """The model sees images reduced by this factor (area mean); its probabilities are enlarged to full size."""
    tile: int = 0
    """Default tile side in pixels of the reduced image; 0: `patch`."""
    overlap: float = 0.5
    """Default fraction of a tile shared with its neighbor."""
    flips: Flips = "none"
    """Default flips of a tile over which probabilities are averaged."""
    temperature: float = 1.0
    """Logits are divided by this before the softmax; 1: not calibrated."""
    share_intervals: ShareIntervals | None = None
    """Intervals for the share of an image that each class covers; None: unknown."""
    held_out: HeldOut | None = None
    """Only for cross-validation runs."""


CALIBRATED = ("temperature", "share_intervals")
"""Fields that `segdist calibrate` sets."""


def card_text(card: ModelCard) -> str:
    """The card as JSON, as stored in the metadata of model files and ONNX files."""
    return json.dumps(stamped(to_dict(card), CARD_VERSION))


def read_card(path: Path) -> ModelCard:
    """The card of a model file; reads the header only.

    Raises:
        UserError: the file is missing or damaged, or was not written by this or an earlier version of segdist.
    """
    metadata = read_metadata(path)
    if CARD_KEY not in metadata:
        raise UserError(f"{path}: no segdist card in this safetensors file; give a file that `segdist train` wrote")
    try:
        values: JsonValue = json.loads(metadata[CARD_KEY])
    except ValueError as error:
        raise UserError(f"{path}: its card is damaged ({error})") from None
    card = from_dict(ModelCard, unstamped(values, CARD_VERSION, str(path)), str(path))
    if impossible := _impossible(card):
        raise UserError(f"{path}: its card is damaged or forged: {impossible}")
    return card


def _impossible(card: ModelCard) -> str:
    """A value that no model trained by segdist can have; "" if there is none."""
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
    """`path` itself, or if it is a run folder, its `first` model, else its `second`."""
    if not path.is_dir():
        return path
    for name in (first, second):
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path}: contains neither {BEST_MODEL} nor {LAST_MODEL}; has training written a model yet?")


def resolve_ensemble(names: Sequence[Path]) -> list[Path]:
    """The model files that `names` refer to, in order; for a folder of folds, each fold's last model.

    Not the best one: it was chosen by its score on the very images that the fold holds out.

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
        UserError: as `read_card`, or the models differ in classes, channels, dtype or scale.
    """
    cards = [read_card(file) for file in files]
    for file, card in zip(files[1:], cards[1:], strict=True):
        for what, (there, here) in {
            "classes": tuple(", ".join(info.name for info in one.classes) for one in (cards[0], card)),
            "channels": (cards[0].channels, card.channels),
            "image dtypes": (cards[0].dtype, card.dtype),
            "image scales": (f"1/{cards[0].scale}", f"1/{card.scale}"),
        }.items():
            if there != here:
                raise UserError(
                    f"these models can't be averaged, because their {what} differ: {files[0]} has {there}, {file} has "
                    f"{here}; give models trained on the same shard set"
                )
    return cards


def inference_settings(models: Sequence[Path]) -> JsonObject:
    """Tile, overlap and flips from the cards; for several models, the largest of each.

    Raises:
        UserError: a model is missing, or the models can't be averaged.
    """
    cards = read_agreeing_cards(resolve_ensemble(models))
    return {
        "tile": max(card.tile or card.patch for card in cards),
        "overlap": max(card.overlap for card in cards),
        "flips": any(card.flips != "none" for card in cards),
    }
