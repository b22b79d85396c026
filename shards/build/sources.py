"""The labeled images that a shard set is built from: drawn ones, or pairs of files."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdist.core.errors import UserError
from segdist.core.files import whole_file
from segdist.core.keyed import Purpose, generator
from shards.build.patches import LabeledImage, bands
from shards.build.recipe import MakeShardsConfig, SyntheticConfig
from shards.build.synthetic import CLASSES, draw
from shards.images.image_file import ImageFile
from shards.images.masks import MaskFile, MaskReader, encode_mask
from shards.images.opening import match_channels, open_image
from shards.manifest import SourcePair
from shards.records import encode_png

DIGEST_BYTES = 16


@dataclass(frozen=True)
class Source:
    """One labeled image of a split. For drawn images the files are where they are to be written."""

    split: str
    number: int
    """Place in its split's list."""
    image: Path
    """The file, or the address of a page in it (`shards.images.opening.page_address`); so is `mask`."""
    mask: Path
    drawn: int = -1
    """Number of the drawing; -1 for the user's own."""

    def pair(self, folder: Path, content: str) -> SourcePair:
        """The manifest's entry."""
        return SourcePair(_relative(self.image, folder), _relative(self.mask, folder), content)


class ArrayImage:
    """A labeled image in memory."""

    digest = content = ""

    def __init__(self, image: NDArray[Any], mask: NDArray[np.uint8]) -> None:
        """`image` (H, W, C), `mask` (H, W)."""
        self.image, self.mask = image, mask
        self.height, self.width = mask.shape

    def read_image(self, top: int, bottom: int, left: int, right: int) -> NDArray[Any]:
        return self.image[top:bottom, left:right]

    def read_mask(self, top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
        return self.mask[top:bottom, left:right]


class FileImage:
    """A labeled image in two files, every pixel of which has been read once and found good."""

    def __init__(self, image: ImageFile, mask: MaskFile, channels: int) -> None:
        """Raises UserError for damaged files, and UnknownLabels where a pixel of the mask belongs to no class."""
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
        self.digest = self._pixel_digest()
        """Of what is seen: copies of the image in other files or formats have the same."""
        seen.update(self.digest.encode())
        self.content = seen.hexdigest()
        """Of labels and pixels."""

    def read_image(self, top: int, bottom: int, left: int, right: int) -> NDArray[Any]:
        return match_channels(self._image.read(top, bottom, left, right), self._channels, self._image.path)

    def read_mask(self, top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
        if self._labels is not None:
            return self._labels[top:bottom, left:right]
        return self._mask.read(top, bottom, left, right)

    def _pixel_digest(self) -> str:
        digest = hashlib.blake2b(f"{self.height} {self.width}".encode(), digest_size=DIGEST_BYTES)
        for top, bottom in bands(self.height, self.width):
            digest.update(np.ascontiguousarray(self.read_image(top, bottom, 0, self.width)).data)
        return digest.hexdigest()


class UnknownLabels(Exception):
    """A mask holds values that belong to no class. Told to the user for all masks at once."""

    def __init__(self, path: Path, counts: Counter[str]) -> None:
        super().__init__(path, counts)
        self.path, self.counts = path, counts


@contextmanager
def open_source(source: Source, config: MakeShardsConfig, channels: int) -> Iterator[LabeledImage]:
    """The labeled image of `source`, with `channels` channels; a drawn one is drawn and its files are written.

    Raises:
        UserError: a file is damaged, or image and mask don't fit each other.
        UnknownLabels: see there.
    """
    if source.drawn >= 0:
        yield _draw_and_write(source, config, channels)
        return
    with ExitStack() as stack:
        image = stack.enter_context(open_image(source.image))
        mask = stack.enter_context(MaskReader(config.masks).open(source.mask))
        sizes = (image.height, image.width), (mask.height, mask.width)
        if sizes[0] != sizes[1]:
            raise UserError(sizes_differ(source, *sizes))
        yield FileImage(image, mask, channels)


def synthetic_sources(config: MakeShardsConfig) -> list[Source]:
    """The drawn images, training ones dealt to train and val."""
    held = chosen_numbers(config.synthetic.train, config.split.validation, config.seed, Purpose.VALIDATION_SPLIT)
    sources, counts = [], {"train": 0, "val": 0, "test": 0}
    for part, count in (("train", config.synthetic.train), ("test", config.synthetic.test)):
        digits = max(4, len(str(count - 1)))
        for drawn in range(count):
            split = "val" if part == "train" and drawn in held else part
            folder, name = config.folder / "source" / part, f"{drawn:0{digits}}.png"
            sources.append(Source(split, counts[split], folder / "images" / name, folder / "masks" / name, drawn=drawn))
            counts[split] += 1
    return sources


def chosen_numbers(count: int, share: float, *key: int) -> set[int]:
    """Which of `count` images (or groups) a split gets, drawn by `key`: the share rounded, at least one, never all."""
    if share == 0 or count < 2:
        return set()
    chosen = min(max(1, round(share * count)), count - 1)
    return set(generator(*key).permutation(count)[:chosen].tolist())


def sizes_differ(source: Source, image: tuple[int, int], mask: tuple[int, int]) -> str:
    """The message for a mask that doesn't lie on its image; sizes are (height, width)."""
    return (
        f"{source.image} is {image[0]} x {image[1]} pixels (height x width), its mask {source.mask} is "
        f"{mask[0]} x {mask[1]}; save the mask at the image's size, or pair them otherwise with --masks.name"
    )


def _draw_and_write(source: Source, config: MakeShardsConfig, channels: int) -> ArrayImage:
    settings: SyntheticConfig = config.synthetic
    part = "test" if source.split == "test" else "train"
    image, mask = draw(config.seed, part, source.drawn, settings.height, settings.width)
    for path, content in ((source.image, encode_png(image[:, :, 0])), (source.mask, encode_mask(mask, CLASSES))):
        with whole_file(path) as file:
            file.write(content)
    return ArrayImage(match_channels(image, channels, source.image), mask)


def _relative(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path.absolute())
