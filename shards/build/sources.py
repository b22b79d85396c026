"""The labeled images that a shard set is built from: the user's files, or synthetic images, whose files are written
here."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdist.core.errors import UserError
from segdist.core.files import whole_file
from shards.build.config import MakeShardsConfig
from shards.build.patches import LabeledImage
from shards.build.synthetic import CLASSES, draw
from shards.images.image_file import ImageFile, bands
from shards.images.masks import MaskFile, MaskReader, encode_mask
from shards.images.opening import match_channels, open_image
from shards.images.orientation import Orientation, OrientedPair, oriented_pair
from shards.images.reduce import reduced_labels, reduced_pixels, reduced_side
from shards.manifest import SourcePair
from shards.pixels import Pixels
from shards.records import encode_png

DIGEST_BYTES = 16


@dataclass(frozen=True)
class FileSource:
    """A labeled image of a split, in two of the user's files."""

    split: str
    number: int
    """Index in its split's list."""
    image: Path
    """The file, or the address of a page in it (`shards.images.opening.page_address`); so is `mask`."""
    mask: Path
    group: str = ""
    """As in `shards.manifest.SourcePair`."""

    @contextmanager
    def open(self, config: MakeShardsConfig, channels: int) -> Iterator[LabeledImage]:
        """The labeled image, with `channels` channels.

        Raises:
            UserError: a file is damaged, or image and mask don't fit each other.
            UnknownLabels: see there.
        """
        reader = MaskReader(config.masks)
        with ExitStack() as stack:
            image = stack.enter_context(open_image(self.image, channels=channels))
            mask = stack.enter_context(reader.open(self.mask))
            pair = oriented_pair(image, mask.file)
            if not pair.upright(config.images.orientation):
                image = stack.enter_context(open_image(self.image, upright=False, channels=channels))
                mask = stack.enter_context(reader.open(self.mask, upright=False))
            if problem := size_problem(self.image, self.mask, pair, config.images.orientation):
                raise UserError(problem)
            yield FileImage(image, mask, channels)

    def kept(self) -> bool:
        """True if all files that building writes for this source exist; here there are none."""
        return True

    def pair(self, folder: Path, content: str) -> SourcePair:
        """The manifest's entry."""
        return SourcePair(_relative(self.image, folder), _relative(self.mask, folder), content, self.group)


@dataclass(frozen=True)
class DrawnSource:
    """A synthetic image of a split, drawn and written to its files when opened."""

    split: str
    number: int
    image: Path
    mask: Path
    drawing: int
    """Its number among the training and validation images, or among the test images."""

    @contextmanager
    def open(self, config: MakeShardsConfig, channels: int) -> Iterator[LabeledImage]:
        """The labeled image, with `channels` channels."""
        size = config.synthetic
        part = "test" if self.split == "test" else "train"
        image, mask = draw(config.seed, part, self.drawing, size.height, size.width)
        for path, content in ((self.image, encode_png(image[:, :, 0])), (self.mask, encode_mask(mask, CLASSES))):
            with whole_file(path) as file:
                file.write(content)
        yield ArrayImage(match_channels(image, channels, self.image), mask)

    def kept(self) -> bool:
        """True if its files exist."""
        return self.image.exists() and self.mask.exists()

    def pair(self, folder: Path, content: str) -> SourcePair:
        """The manifest's entry."""
        return SourcePair(_relative(self.image, folder), _relative(self.mask, folder), content)


Source = FileSource | DrawnSource


class ArrayImage:
    """A labeled image in memory."""

    digest = content = ""

    def __init__(self, image: Pixels, mask: NDArray[np.uint8]) -> None:
        """`image` (H, W, C), `mask` (H, W)."""
        self.image, self.mask = image, mask
        self.height, self.width = mask.shape

    def read_image(self, top: int, bottom: int, left: int, right: int) -> Pixels:
        return self.image[top:bottom, left:right]

    def read_mask(self, top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
        return self.mask[top:bottom, left:right]


class FileImage:
    """A labeled image in two files, every pixel of which has been read and checked."""

    def __init__(self, image: ImageFile, mask: MaskFile, channels: int) -> None:
        """Raises UserError for damaged files, and UnknownLabels if a mask pixel belongs to no class."""
        self._image, self._mask, self._channels = image, mask, channels
        self.height, self.width = image.height, image.width
        self._labels: NDArray[np.uint8] | None = None
        unknown: Counter[str] = Counter()
        seen = hashlib.blake2b(digest_size=DIGEST_BYTES)
        if mask.windowed:
            for top, bottom in bands(self.height, self.width):
                labels, found = mask.read_counted(top, bottom)
                unknown += found
                seen.update(np.ascontiguousarray(labels).data)
        else:
            self._labels, unknown = mask.read_counted(0, self.height)
            seen.update(np.ascontiguousarray(self._labels).data)
        if unknown:
            raise UnknownLabels(mask.path, unknown)
        pixels, empty = self._pixel_digest()
        self.digest = "" if empty else pixels
        """Digest of the visible pixels, equal for copies in other files or formats. Empty for single-color images:
        tiles without data look the same without being copies."""
        seen.update(pixels.encode())
        self.content = seen.hexdigest()
        """Digest of labels and pixels."""

    def read_image(self, top: int, bottom: int, left: int, right: int) -> Pixels:
        return match_channels(self._image.read(top, bottom, left, right), self._channels, self._image.path)

    def read_mask(self, top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
        if self._labels is not None:
            return self._labels[top:bottom, left:right]
        return self._mask.read(top, bottom, left, right)

    def _pixel_digest(self) -> tuple[str, bool]:
        """Digest of all pixels, and whether they are all the same."""
        digest = hashlib.blake2b(f"{self.height} {self.width}".encode(), digest_size=DIGEST_BYTES)
        first, same = None, True
        for top, bottom in bands(self.height, self.width):
            pixels = self.read_image(top, bottom, 0, self.width)
            digest.update(np.ascontiguousarray(pixels).data)
            first = pixels[:1, :1].copy() if first is None else first
            same = same and bool((pixels == first).all())
        return digest.hexdigest(), same


class ReducedImage:
    """A downscaled labeled image."""

    def __init__(self, image: LabeledImage, scale: int) -> None:
        self.image, self.scale = image, scale
        self.height, self.width = reduced_side(image.height, scale), reduced_side(image.width, scale)
        self.digest, self.content = image.digest, image.content

    def read_image(self, top: int, bottom: int, left: int, right: int) -> Pixels:
        return reduced_pixels(self.image.read_image(*self._window(top, bottom, left, right)), self.scale)

    def read_mask(self, top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
        return reduced_labels(self.image.read_mask(*self._window(top, bottom, left, right)), self.scale, (top, left))

    def _window(self, top: int, bottom: int, left: int, right: int) -> tuple[int, int, int, int]:
        scale, height, width = self.scale, self.image.height, self.image.width
        return top * scale, min(bottom * scale, height), left * scale, min(right * scale, width)


def reduced(image: LabeledImage, scale: int) -> LabeledImage:
    """The image downscaled by `scale`, or the image itself if that is 1 (or 0, the unset value in older sets)."""
    return ReducedImage(image, scale) if scale > 1 else image


class UnknownLabels(Exception):
    """A mask holds values that belong to no class. Reported to the user for all masks at once."""

    def __init__(self, path: Path, counts: Counter[str]) -> None:
        super().__init__(path, counts)
        self.path, self.counts = path, counts


def size_problem(image: Path, mask: Path, pair: OrientedPair, orientation: Orientation) -> str:
    """The error message for a mask whose size doesn't match its image; empty if it does."""
    upright = pair.upright(orientation)
    sizes = (pair.image_size, pair.mask_size) if upright else (pair.image_stored, pair.mask_stored)
    if sizes[0] == sizes[1]:
        return ""
    tags = pair.image_tag, pair.mask_tag
    turned = f" (orientation tags {tags[0]} and {tags[1]} {'applied' if upright else 'ignored'})"
    return (
        f"{image} is {sizes[0][0]} x {sizes[0][1]} pixels (height x width), its mask {mask} is "
        f"{sizes[1][0]} x {sizes[1][1]}{turned if tags != (1, 1) else ''}; save the mask at the image's size, or pair "
        "them differently with --masks.name"
    )


def _relative(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path.absolute())
