"""Which images an inference job works on, what they are called in the output, and what their headers say."""

import contextlib
import glob
import hashlib
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from segdist.core.errors import UserError
from segdist.core.files import LONGEST_NAME
from segdist.core.paths import set_dir
from segdist.inference.config import InferConfig
from shards.build.mask_search import find_masks, mask_files
from shards.build.pairs import csv_rows
from shards.images.config import synthetic_masks_config
from shards.images.folders import existing_address, hidden_below, images_in, name_of
from shards.images.masks import MaskReader, mask_reader_from_recipe
from shards.images.opening import IMAGE_SUFFIXES, ZARR_SUFFIX, open_image, page_address, page_addresses, split_address
from shards.images.orientation import Orientation, OrientedPair, oriented_pair
from shards.manifest import ClassInfo, read_manifest

LONGEST_SUFFIX = len("..zarr.tmp")
"""What the names of files that are called like an image add to it, at most."""
HEADER_THREADS = 16
"""Headers are read by so many threads at once: on network file systems each costs a round trip."""


@dataclass(frozen=True)
class InputImage:
    """One image to segment."""

    name: str
    """Unique in the job; output files are called so. May contain folders."""
    path: str
    mask: str | None = None


@dataclass(frozen=True)
class Header:
    """What is known of an image without decoding it; `error` if it can't be opened."""

    height: int = 0
    width: int = 0
    channels: int = 0
    dtype: str = ""
    windowed: bool = True
    size: int = 0
    """Bytes of the file, which with `changed` (nanoseconds) tells whether it is still the same."""
    changed: int = 0
    upright: bool = True
    """Image and mask are turned by their orientation tags."""
    error: str = ""
    pair: OrientedPair | None = None
    """What the orientation tags of the image and its mask say."""

    def turned(self, orientation: Orientation) -> "Header":
        """The header once it is decided whether tags are followed where only one file has one."""
        if self.pair is None or self.pair.upright(orientation):
            return self
        height, width = self.pair.image_stored
        return replace(self, height=height, width=width, upright=False)

    @property
    def pixels(self) -> int:
        return self.height * self.width


@dataclass(frozen=True)
class Inputs:
    """The images of a job and how their masks are read."""

    label: str
    """What the predictions are called in the run folder."""
    images: list[InputImage]
    masks: MaskReader | None
    orientation: Orientation = "auto"
    """What is known of it: a shard set has decided."""


def find_inputs(config: InferConfig, classes: tuple[ClassInfo, ...]) -> Inputs:
    """The images that `config` names; `classes` are the model's, which masks without further settings show.

    Raises:
        UserError: nothing was found, names clash, or a mask is missing.
    """
    if config.data:
        return _of_shard_set(config)
    images = []
    for pattern in config.images:
        images += _expand(pattern)
    # The same file may be named twice, by a folder and by a glob.
    images = list({os.path.abspath(found[0]): found for found in images}.values())
    if not images:
        raise UserError(f"--images {' '.join(config.images)}: no images found (looked for {' '.join(IMAGE_SUFFIXES)})")
    named = _named([path for path, _, _ in images])
    masks_of = [mask for _, mask, _ in images]
    if config.masks.folder is not None:
        masks_of = _masks_of(images, config.masks.folder, config.masks.name)
    found = [InputImage(name, path, mask) for name, (path, _, _), mask in zip(named, images, masks_of, strict=True)]
    masks = None
    if any(image.mask for image in found):
        masks = MaskReader(config.masks if config.masks.classes else synthetic_masks_config(classes))
    first = Path(config.images[0])
    label = first.name if first.is_dir() else first.stem if len(config.images) == 1 else first.parent.name
    return Inputs(label.replace("*", "") or "images", found, masks, config.orientation)


def read_headers(images: list[InputImage], channels: int, masks: MaskReader | None) -> list[Header]:
    """The header of each image, read for a model of `channels` channels; of its mask only the orientation."""
    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        return list(pool.map(lambda image: _header(image, channels, masks), images))


def _header(image: InputImage, channels: int, masks: MaskReader | None) -> Header:
    try:
        with open_image(image.path, channels=channels) as opened:
            status = os.stat(split_address(image.path)[0])
            header = Header(
                opened.height,
                opened.width,
                opened.channels,
                str(opened.dtype),
                opened.windowed,
                status.st_size,
                status.st_mtime_ns,
            )
            if image.mask and masks:
                # What is wrong with the mask is told when it is read.
                with contextlib.suppress(UserError), masks.open(image.mask) as mask:
                    header = replace(header, pair=oriented_pair(opened, mask.file))
            return header
    except UserError as error:
        return Header(error=str(error))
    except OSError as error:
        return Header(error=f"{image.path}: can't be read ({error.strerror})")


def _of_shard_set(config: InferConfig) -> Inputs:
    folder = set_dir(config.data)
    if not isinstance(folder, Path):
        raise UserError(f"--data {folder}: the images of a set behind a URL are not here; name them with --images")
    manifest = read_manifest(folder)
    sources = manifest.sources.get(config.split, ())
    if not sources:
        raise UserError(f"--data {config.data} --split {config.split}: the shard set has no such images")
    paths = [str(folder / pair.image) for pair in sources]
    images = [
        InputImage(name, path, str(folder / pair.mask) if pair.mask else None)
        for name, path, pair in zip(_named(paths), paths, sources, strict=True)
    ]
    label = folder.resolve().name + ("" if config.split == "test" else f"-{config.split}")
    # Sets from before there was the setting followed the tags.
    orientation = config.orientation
    if orientation == "auto":
        orientation = manifest.recipe.get("images", {}).get("orientation", "apply")
    return Inputs(label, images, mask_reader_from_recipe(manifest.recipe), orientation)


Named = tuple[str, str | None, Path]
"""An image, its mask where a CSV file names one, and its path in the folder that the user named."""


def _expand(pattern: str) -> list[Named]:
    """The images that one argument names."""
    path = Path(pattern)
    if path.suffix.lower() == ".csv" and path.is_file():
        return _read_csv(path)
    if path.is_dir() and path.suffix.lower() != ZARR_SUFFIX:
        with ThreadPoolExecutor(HEADER_THREADS) as pool:  # in the same order
            pages = [page for of_file in pool.map(_pages, images_in(path, skip_unreadable=True)) for page in of_file]
        return [(str(page), None, page.relative_to(path)) for page in pages]
    if path.exists():
        return [(str(page), None, Path(page.name)) for page in _pages(path)]
    if split_address(pattern)[0].exists():
        return [(pattern, None, Path(path.name))]
    fixed = os.path.dirname(re.split(r"[*?[]", pattern)[0])
    found = [match for match in sorted(glob.glob(pattern, recursive=True)) if not hidden_below(match, fixed)]
    if not found:
        raise UserError(f"--images {pattern}: no such file or folder, and as a pattern it matches nothing")
    return [pair for match in found for pair in _expand(match)]


def _read_csv(path: Path) -> list[Named]:
    """Rows of a CSV file with a column `image` and optionally `mask`; paths are relative to the file."""
    rows = csv_rows(path)
    if not rows or "image" not in rows[0]:
        raise UserError(f"{path}: needs a header line with a column `image` (and optionally `mask`), and rows below it")
    if empty := [number for number, row in enumerate(rows, start=2) if not row["image"]]:
        raise UserError(f"{path} line {empty[0]}: no image is named")
    found: list[Named] = []
    for row in rows:
        images = _pages(existing_address(path.parent / row["image"]))
        masks = _pages(existing_address(path.parent / row["mask"])) if row.get("mask") else []
        for place, image in enumerate(images):
            mask = str(_at(masks, place)) if masks else None
            found.append((str(image), mask, Path(row["image"]).with_name(image.name)))
    return found


def _masks_of(images: list[Named], folder: Path, name: str) -> list[str | None]:
    """The mask of each image by the rule of `make-shards`; a page of an image has the same page of the mask."""
    if not folder.is_dir():
        raise UserError(f"--masks.folder {folder}: no such folder")
    files = mask_files(folder, below=any(len(place.parts) > 1 for _, _, place in images))
    by_name = {name_of(split_address(place)[0]): split_address(image)[0] for image, _, place in images}
    found = find_masks(by_name, files, folder, name, job="infer").masks
    masks: list[str | None] = []
    pages_of: dict[Path, list[Path]] = {}
    for image, _, place in images:
        address, mask = Path(image), found[name_of(split_address(place)[0])]
        file = split_address(address)[0]
        for path in (file, mask):
            pages_of[path] = pages_of.get(path) or _pages(path)
        number = pages_of[file].index(address) if address in pages_of[file] else split_address(address)[1]
        masks.append(str(_at(pages_of[mask], number)))
    return masks


def _pages(path: Path) -> list[Path]:
    """All images in a file; the file itself where it can't be opened, which is told when its header is read."""
    try:
        return page_addresses(path)
    except UserError:
        return [path]


def _at(pages: list[Path], place: int) -> Path:
    """The mask of the image at `place` in its file: the page of the same place. One that is missing is told later."""
    return pages[place] if place < len(pages) else page_address(split_address(pages[0])[0], place)


def _named(paths: list[str]) -> list[str]:
    """Output names: paths without suffix, relative to the folder that all have in common.

    Images that differ in the suffix alone keep it.
    """
    absolute = [_named_page(Path(os.path.abspath(path))) for path in paths]
    common = Path(os.path.commonpath([path.parent for path in absolute]))
    names = [path.relative_to(common) for path in absolute]
    uses = Counter(name.with_suffix("") for name in names)
    return [str(_short(name.with_suffix("") if uses[name.with_suffix("")] == 1 else name)) for name in names]


def _short(name: Path) -> Path:
    """`name`, cut and marked with a digest where the files that are called so would get too long a name."""
    content = os.fsencode(name.name)
    if len(content) <= LONGEST_NAME - LONGEST_SUFFIX:
        return name
    kept = content[: LONGEST_NAME - LONGEST_SUFFIX - 9].decode(errors="ignore")
    return name.with_name(f"{kept}-{hashlib.sha256(content).hexdigest()[:8]}")


def _named_page(address: Path) -> Path:
    """`stack.tif#page=3` as `stack-page3.tif`."""
    path, page = split_address(address)
    return path.with_name(f"{path.stem}-page{page}{path.suffix}") if page else path
