"""Facts about images and masks, gathered before any patch is cut: sizes of objects, fractions of classes, up direction.

H W: pixels of a mask, K classes.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segdist.core.errors import UserError
from shards.build.choices import ClassFacts, SetFacts
from shards.build.config import MakeShardsConfig
from shards.build.sources import FileSource
from shards.images.image_file import bands
from shards.images.masks import MaskReader
from shards.images.opening import open_image
from shards.images.reduce import enlarged, reduced_labels
from shards.manifest import IGNORE

SAMPLE = 24
"""Number of masks to sample, spread over the training images."""
WINDOW = 2048
"""Side of the central part of a mask that is examined."""
ENLARGED = 12
"""Number of masks to downscale and upscale."""
UP_IMAGES, UP_SHARE, UP_OFFSET, UP_CERTAINTY = 8, 0.02, 0.1, 6.0
"""Images have a fixed up direction if a class of at least this fraction is this far from the middle (in heights), in at
least this many images, this many standard errors from 0."""


def facts_of(
    sources: Sequence[FileSource], sizes: Sequence[tuple[int, int]], images: int, config: MakeShardsConfig
) -> SetFacts:
    """The facts of a set's training images.

    Args:
        sources: a sample of them, at most SAMPLE.
        sizes: height and width of each.
        images: total number of training images.
        config: its classes must be known.
    """
    reader = MaskReader(config.masks)
    masks = [mask for source in sources if (mask := _middle(source, reader)) is not None]
    num_classes = len(reader.classes)
    height, width = (int(np.median([size[axis] for size in sizes])) for axis in (0, 1))
    return SetFacts(
        images=images,
        height=height,
        width=width,
        classes=class_facts(masks, [info.name for info in reader.classes]),
        kept={factor: kept_iou(masks[:ENLARGED], factor, num_classes) for factor in (2, 4)},
        upright=has_an_up(masks, num_classes),
    )


def class_facts(masks: Sequence[NDArray[np.uint8]], names: Sequence[str]) -> tuple[ClassFacts, ...]:
    """Fraction, width and length of each class that occurs in labels (H, W)."""
    short = np.zeros((len(names), WINDOW + 1), np.int64)
    long = np.zeros_like(short)
    for mask in masks:
        along, down = runs(mask), runs(mask.T).T
        for lengths, counts in ((np.minimum(along, down), short), (np.maximum(along, down), long)):
            both = mask.astype(np.int64) * (WINDOW + 1) + np.minimum(lengths, WINDOW)
            found = np.bincount(both[mask < len(names)], minlength=counts.size)
            counts += found[: counts.size].reshape(counts.shape)
    total = max(int(short.sum()), 1)
    return tuple(
        ClassFacts(name, int(ends.sum()) / total, _quantile(ends, 0.5), _quantile(others, 0.75))
        for name, ends, others in zip(names, short, long, strict=True)
        if ends.sum()
    )


def runs(mask: NDArray[np.uint8]) -> NDArray[np.int64]:
    """For each pixel of (H, W), the length of its run of equal labels along the row."""
    height, width = mask.shape
    starts = np.ones((height, width), bool)
    starts[:, 1:] = mask[:, 1:] != mask[:, :-1]
    first = np.flatnonzero(starts)
    lengths = np.diff(np.append(first, mask.size))
    return np.repeat(lengths, lengths).reshape(height, width)


def kept_iou(masks: Sequence[NDArray[np.uint8]], factor: int, num_classes: int) -> float:
    """Mean IoU of masks with copies of themselves downscaled by `factor` and upscaled again."""
    confusion = np.zeros((num_classes, num_classes), np.int64)
    for mask in masks:
        small = reduced_labels(mask, factor)
        planes = [enlarged((small == label).astype(np.float32), factor, *mask.shape) for label in range(num_classes)]
        found = np.argmax(planes, axis=0)
        known = mask < num_classes
        pairs = mask[known].astype(np.int64) * num_classes + found[known]
        confusion += np.bincount(pairs, minlength=confusion.size).reshape(confusion.shape)
    hits = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    return float((hits[union > 0] / union[union > 0]).mean()) if union.any() else 1.0


def has_an_up(masks: Sequence[NDArray[np.uint8]], num_classes: int) -> bool:
    """True if some class is consistently above, or below, the middle."""
    labeled = sum(int((mask < num_classes).sum()) for mask in masks)
    for label in range(num_classes):
        rows = [np.nonzero(mask == label)[0] / max(len(mask) - 1, 1) - 0.5 for mask in masks]
        if sum(map(len, rows)) < UP_SHARE * labeled:
            continue
        offsets = np.array([each.mean() for each in rows if len(each)])
        if len(offsets) < UP_IMAGES:
            continue
        error = max(float(offsets.std(ddof=1)) / len(offsets) ** 0.5, 1e-6)
        if abs(offsets.mean()) > UP_OFFSET and abs(offsets.mean()) > UP_CERTAINTY * error:
            return True
    return False


def gray_all_over(sources: Sequence[FileSource]) -> bool:
    """True if all channels of every image are equal; stops at the first that has color."""
    for source in sources:
        with open_image(source.image) as image:
            if image.channels == 1:
                continue
            for top, bottom in bands(image.height, image.width):
                pixels = image.read(top, bottom)
                if (pixels != pixels[..., :1]).any():
                    return False
    return True


def _middle(source: FileSource, reader: MaskReader) -> NDArray[np.uint8] | None:
    """Labels of the middle of a mask; values in no class are ignored. None for an unreadable mask: the error is
    reported later, when all masks are read."""
    try:
        with reader.open(source.mask) as mask:
            top, left = (max(side - WINDOW, 0) // 2 for side in (mask.height, mask.width))
            bottom, right = min(top + WINDOW, mask.height), min(left + WINDOW, mask.width)
            labels, _ = mask.read_counted(top, bottom, left, right)
    except UserError:
        return None
    return np.where(labels < len(reader.classes), labels, IGNORE).astype(np.uint8)


def _quantile(counts: NDArray[np.int64], share: float) -> float:
    """Quantile of the numbers 0, 1, 2 … that occur `counts` times."""
    ends = np.cumsum(counts)
    return float(np.searchsorted(ends, share * ends[-1]))
