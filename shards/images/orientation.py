"""Decide whether to apply orientation tags if only one of image and mask has one.

A phone stores a photo as the sensor saw it, with a tag that says how to rotate it. A labeling tool shows it upright; a
script that reads raw pixels doesn't. So a mask without a tag can match either. If both files of a pair have a tag, or
neither does, each is rotated by its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segdist.core.errors import UserError
from shards.images.image_file import ImageFile

Orientation = Literal["auto", "apply", "ignore"]

_SHOWN = 5


@dataclass(frozen=True)
class OrientedPair:
    """The headers of an image and its mask; sizes are (height, width)."""

    image: Path
    image_tag: int
    mask_tag: int
    image_size: tuple[int, int]
    """After rotation by its own tag; likewise `mask_size`."""
    mask_size: tuple[int, int]
    image_stored: tuple[int, int]
    """As the pixels are stored; likewise `mask_stored`."""
    mask_stored: tuple[int, int]

    @property
    def fits_upright(self) -> bool:
        """The sizes agree if each file is rotated by its own tag."""
        return self.image_size == self.mask_size

    @property
    def fits_stored(self) -> bool:
        """The sizes agree as the pixels are stored."""
        return self.image_stored == self.mask_stored

    @property
    def in_doubt(self) -> bool:
        """Only one of the files has a tag that rotates it."""
        return (self.image_tag != 1) != (self.mask_tag != 1)

    def upright(self, orientation: Orientation) -> bool:
        """Whether to rotate the files of this pair by their tags, given the decision for the set."""
        return not (self.in_doubt and orientation == "ignore")


def oriented_pair(image: ImageFile, mask: ImageFile) -> OrientedPair:
    """The headers of two open files."""
    return OrientedPair(
        image.path,
        image.orientation,
        mask.orientation,
        image.upright_size,
        mask.upright_size,
        image.stored_size,
        mask.stored_size,
    )


def decide_orientation(pairs: Sequence[OrientedPair], wanted: Orientation, flag: str) -> Orientation:
    """The decision for all pairs of a set: the user's choice, or the one that the sizes imply.

    `flag` is the setting to name in messages. If sizes agree in neither way, or differently for each pair, the result
    is "apply", and opening the pairs reports the sizes.

    Raises:
        UserError: the sizes don't decide it.
    """
    doubtful = [pair for pair in pairs if pair.in_doubt and (pair.fits_upright or pair.fits_stored)]
    if wanted != "auto" or not doubtful:
        return "apply" if wanted == "auto" else wanted
    upright = all(pair.fits_upright for pair in doubtful)
    stored = all(pair.fits_stored for pair in doubtful)
    if upright and stored:
        shown = ", ".join(f"{pair.image} (tag {max(pair.image_tag, pair.mask_tag)})" for pair in doubtful[:_SHOWN])
        raise UserError(
            f"{len(doubtful)} images have an orientation tag (EXIF or TIFF) that their masks lack, or vice "
            f"versa, and the sizes agree either way: {shown}{', …' if len(doubtful) > _SHOWN else ''}; give "
            f"{flag} apply if the masks were drawn on the pictures as viewers show them, {flag} ignore if on the "
            "pixels as stored"
        )
    return "ignore" if stored else "apply"
