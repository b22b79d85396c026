"""What `segdist make-shards` chooses where nothing is set: from facts of images and masks to settings, with reasons.

Pure functions; `shards.build.facts` reads the facts. docs/data.md has the rules, docs/training.md the measurements.
"""

import math
from dataclasses import dataclass, field

from segdist.core.choice import Choice

HELD_OUT, VALIDATING, MOST_HELD = 0.15, 0.1, 200
"""Shares of the images (or groups), and the most that are needed of each."""
FEW = 5
"""With fewer images to learn from, none is spent on validation."""
LARGE_OBJECT, THIN, KEPT = 40, 5, 0.9
"""Images are halved while their objects are longer than so many pixels, if the classes stay wider than so many and the
masks keep so much of their mean IoU."""
CONTEXT = 2.5
"""Side of a patch, in lengths of an object."""
SMALLEST, LARGEST, MULTIPLE = 96, 192, 32
COVERED = 3
"""Times that the patches of an image cover its area."""
FEWEST_PATCHES, FEWEST_IN_ALL, MOST_IN_ALL = 8, 300, 40_000
RARE, BALANCE = 0.05, 0.33
"""A class with a smaller share of the pixels is rare; then this share of the patches is laid on classes."""
MOST_CLASSES, IN_MASKS, SHARE_OF_PIXELS = 20, 2, 0.001
"""Values become classes if there are no more, and each is in so many masks or has this share of the pixels."""


@dataclass(frozen=True)
class ClassFacts:
    """Of one class, over all its pixels that were looked at."""

    name: str
    share: float
    """Of the labeled pixels."""
    width: float
    """Median over the pixels: the shorter of the two runs, along the row and along the column, that the pixel is in."""
    length: float
    """Of the longer ones the 75th percentile."""


@dataclass(frozen=True)
class SetFacts:
    """What is known of the training images."""

    images: int
    height: int
    """Median."""
    width: int
    classes: tuple[ClassFacts, ...]
    """Those that occur."""
    kept: dict[int, float] = field(default_factory=dict)
    """By factor: mean IoU of masks that were reduced and enlarged again."""
    upright: bool = False
    """A class lies above or below the middle in image after image."""


DRAWN = (
    Choice("patches.size", 96, "drawn images, as published"),
    Choice("patches.per_image", 20, "as published"),
    Choice("patches.balance", 0.0, "as published"),
    Choice("patches.scale", 1, "as published"),
    Choice("split.validation", VALIDATING, "as published"),
    Choice("split.test", 0.0, "test images are drawn"),
    Choice("images.upright", "no", "lines and ellipses have no up"),
)
EARLIER = (
    *(Choice("patches.size", 96, ""), Choice("patches.per_image", 20, ""), Choice("patches.balance", 0.0, "")),
    *(Choice("patches.scale", 1, ""), Choice("images.upright", "no", "")),
    *(Choice("split.validation", 0.1, ""), Choice("split.test", 0.0, "")),
)
"""What was done before anything was chosen: the defaults of that time."""


def choose_split(groups: int, *, test_named: bool, grouped: bool) -> list[Choice]:
    """Shares to hold out and to validate with.

    Args:
        groups: images (or groups of them) that are not in a split yet.
        test_named: the user says himself what is held out.
        grouped: `groups` are groups.
    """
    what = "groups" if grouped else "images"
    if test_named:
        test = Choice("split.test", 0.0, "what is held out is named")
    elif groups < 2:
        test = Choice("split.test", 0.0, f"{groups} {what}: none to spare")
    else:
        share = round(min(HELD_OUT, MOST_HELD / groups), 4)
        count = min(max(1, round(share * groups)), groups - 1)
        test = Choice("split.test", share, f"{count} of {groups} {what}, for scores that training has no part in")
        groups -= count
    if groups < FEW:
        reason = f"with {groups} {what} to learn from none is spared; the last model is kept"
        return [test, Choice("split.validation", 0.0, reason)]
    share = round(min(VALIDATING, MOST_HELD / groups), 4)
    count = max(1, round(share * groups))
    return [test, Choice("split.validation", share, f"{count} of {groups} {what}, to choose the best model by")]


def choose_patches(facts: SetFacts) -> list[Choice]:
    """Scale, side, number and balance of the patches, and whether the images have an up."""
    scale = _scale(facts)
    size = _size(facts, scale.value)
    if facts.upright:
        upright = Choice("images.upright", "yes", "classes lie above or below the middle in image after image")
    else:
        upright = Choice("images.upright", "no", "no class lies above or below the middle in image after image")
    return [scale, size, _per_image(facts, scale.value, size.value), _balance(facts), upright]


def object_length(facts: SetFacts) -> float:
    """Length of the largest objects in pixels, of all classes but the most frequent, which is what they lie in."""
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
        reason = f"objects of {length:.0f} pixels; reduced, a patch holds more, and masks keep {kept:.2f} of their IoU"
    return Choice("patches.scale", scale, reason)


def _size(facts: SetFacts, scale: int) -> Choice:
    length = object_length(facts) / scale
    side = min(facts.height, facts.width) / scale
    wanted = _rounded_up(CONTEXT * length)
    size = min(max(wanted, SMALLEST), LARGEST, max(_rounded_up(side), MULTIPLE))
    reason = f"objects of {length:.0f} pixels and what is around them, in images of {side:.0f}"
    return Choice("patches.size", size, reason if scale == 1 else f"{reason}, reduced to 1/{scale}")


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
        return Choice("patches.balance", BALANCE, f"{share}: a third of the patches is laid on a class drawn at random")
    return Choice("patches.balance", 0.0, f"{share}, which is not rare")


def _rounded_up(pixels: float) -> int:
    return math.ceil(pixels / MULTIPLE) * MULTIPLE
