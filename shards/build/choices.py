"""How `segdist make-shards` chooses open settings from facts about images and masks, each with its reason.

Pure functions; `shards.build.facts` gathers the facts. docs/data.md has the rules, docs/training.md the measurements.
"""

import math
from dataclasses import dataclass, field

from segdist.core.choice import Choice

HELD_OUT, VALIDATING, MOST_HELD = 0.15, 0.1, 200
"""Fractions of the images (or groups), and the maximum number of each."""
FEW = 5
"""With fewer training images than this, none is used for validation."""
LARGE_OBJECT, THIN, KEPT = 40, 5, 0.9
"""Images are halved while their objects are longer than this many pixels, as long as classes stay at least this wide
and masks keep this much of their mean IoU."""
CONTEXT = 2.5
"""Side of a patch, in object lengths."""
SMALLEST, LARGEST, MULTIPLE = 96, 192, 32
COVERED = 3
"""How many times the patches of an image cover its area."""
FEWEST_PATCHES, FEWEST_IN_ALL, MOST_IN_ALL = 8, 300, 40_000
RARE, BALANCE = 0.05, 0.33
"""A class with a smaller fraction of the pixels is rare; then this fraction of the patches is centered on classes."""
MOST_CLASSES, IN_MASKS, SHARE_OF_PIXELS = 20, 2, 0.001
"""Values become classes if there are at most this many, each in at least this many masks or this fraction of the
pixels."""


@dataclass(frozen=True)
class ClassFacts:
    """Statistics of one class, over all its sampled pixels."""

    name: str
    share: float
    """Fraction of the labeled pixels."""
    width: float
    """Median over the pixels of the shorter of the pixel's two runs, along its row and along its column."""
    length: float
    """75th percentile of the longer runs."""


@dataclass(frozen=True)
class SetFacts:
    """Facts about the training images."""

    images: int
    height: int
    """Median."""
    width: int
    classes: tuple[ClassFacts, ...]
    """The classes that occur."""
    kept: dict[int, float] = field(default_factory=dict)
    """By factor: mean IoU of masks after downscaling and upscaling."""
    upright: bool = False
    """Some class is consistently above or below the middle."""


DRAWN = (
    Choice("patches.size", 96, "synthetic images, as published"),
    Choice("patches.per_image", 20, "as published"),
    Choice("patches.balance", 0.0, "as published"),
    Choice("patches.scale", 1, "as published"),
    Choice("split.validation", VALIDATING, "as published"),
    Choice("split.test", 0.0, "synthetic sets have their own test images"),
    Choice("images.upright", "no", "lines and ellipses have no up direction"),
)
EARLIER = (
    *(Choice("patches.size", 96, ""), Choice("patches.per_image", 20, ""), Choice("patches.balance", 0.0, "")),
    *(Choice("patches.scale", 1, ""), Choice("images.upright", "no", "")),
    *(Choice("split.validation", 0.1, ""), Choice("split.test", 0.0, "")),
)
"""The defaults before settings were chosen automatically."""


def choose_split(free: int, train: int = 0, *, test_named: bool, validation_named: bool, grouped: bool) -> list[Choice]:
    """Fractions to hold out and to use for validation.

    Args:
        free: number of images (or groups of them) not yet in a split.
        train: number of those that the user names for training; if no validation images are named, some of these and
            of the free ones become validation images.
        test_named, validation_named: the user names the held-out images, the validation images.
        grouped: True if the numbers are of groups rather than images.
    """
    what = "groups" if grouped else "images"
    if test_named:
        test = Choice("split.test", 0.0, "held-out images are named")
    elif free < 2:
        test = Choice("split.test", 0.0, f"{free} {what} not in a split yet: none to spare")
    else:
        share = round(min(HELD_OUT, MOST_HELD / free), 4)
        count = min(max(1, round(share * free)), free - 1)
        test = Choice("split.test", share, f"{count} of {free} {what}, for scores on images held out of training")
        free -= count
    train += free
    if validation_named:
        return [test, Choice("split.validation", 0.0, "validation images are named")]
    if train < FEW:
        reason = f"only {train} {what} to train on, none to spare; the last model is kept"
        return [test, Choice("split.validation", 0.0, reason)]
    share = round(min(VALIDATING, MOST_HELD / train), 4)
    count = max(1, round(share * train))
    return [test, Choice("split.validation", share, f"{count} of {train} {what}, to select the best model")]


def choose_patches(facts: SetFacts) -> list[Choice]:
    """Scale, side, number and balance of the patches, and whether the images have a fixed up direction."""
    scale = _scale(facts)
    size = _size(facts, scale.value)
    if facts.upright:
        upright = Choice("images.upright", "yes", "some classes are consistently above or below the middle")
    else:
        upright = Choice("images.upright", "no", "no class is consistently above or below the middle")
    return [scale, size, _per_image(facts, scale.value, size.value), _balance(facts), upright]


def object_length(facts: SetFacts) -> float:
    """Length of the largest objects in pixels, over all classes except the most frequent, which surrounds them."""
    others = sorted(facts.classes, key=lambda one: one.share)[:-1] or list(facts.classes)
    return max((one.length for one in others), default=0.0)


def _scale(facts: SetFacts) -> Choice:
    length = object_length(facts)
    widths = sorted(one.width for one in facts.classes)
    width = widths[(len(widths) - 1) // 2] if widths else 0.0
    scale, reason = 1, f"objects of {length:.0f} pixels fit a patch at full size"
    for factor in (2, 4):
        if length / scale <= LARGE_OBJECT:
            break
        kept = facts.kept.get(factor, 0.0)
        if width / factor < THIN:
            reason = f"objects of {length:.0f} pixels are large, but classes only {width:.0f} wide"
            break
        if kept < KEPT:
            reason = (
                f"objects of {length:.0f} pixels are large, but at 1/{factor} masks keep only {kept:.2f} of their IoU"
            )
            break
        scale = factor
        reason = (
            f"objects of {length:.0f} pixels; downscaled, a patch shows more, and masks keep {kept:.2f} of their IoU"
        )
    return Choice("patches.scale", scale, reason)


def _size(facts: SetFacts, scale: int) -> Choice:
    length = object_length(facts) / scale
    side = min(facts.height, facts.width) / scale
    wanted = _rounded_up(CONTEXT * length)
    size = min(max(wanted, SMALLEST), LARGEST, max(_rounded_up(side), MULTIPLE))
    reason = f"objects of {length:.0f} pixels with their surroundings, in images of {side:.0f}"
    return Choice("patches.size", size, reason if scale == 1 else f"{reason}, downscaled to 1/{scale}")


def _per_image(facts: SetFacts, scale: int, size: int) -> Choice:
    area = facts.height * facts.width / scale**2
    fewest = max(FEWEST_PATCHES, len(facts.classes), math.ceil(FEWEST_IN_ALL / max(facts.images, 1)))
    most = max(MOST_IN_ALL // max(facts.images, 1), fewest)
    count = min(max(round(COVERED * area / size**2), fewest), most)
    reason = f"they cover an image {count * size**2 / area:.2g} times; {count * facts.images} in {facts.images} images"
    return Choice("patches.per_image", count, reason)


def _balance(facts: SetFacts) -> Choice:
    if not facts.classes:
        return Choice("patches.balance", 0.0, "no labeled pixel was seen")
    rarest = min(facts.classes, key=lambda one: one.share)
    share = f"{rarest.name} has {100 * rarest.share:.2g} % of the pixels"
    if rarest.share < RARE:
        return Choice(
            "patches.balance", BALANCE, f"{share}: a third of the patches are centered on a randomly drawn class"
        )
    return Choice("patches.balance", 0.0, f"{share}, which is not rare")


def _rounded_up(pixels: float) -> int:
    return math.ceil(pixels / MULTIPLE) * MULTIPLE
