"""The images of an inference job: which they are, their names in the output, and their headers."""

import contextlib
import glob
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from segdist.core.errors import UserError
from segdist.core.paths import set_dir
from segdist.inference.config import InferConfig
from segdist.inference.out_of_fold import divide_as_trained
from segdist.inference.result_names import result_names
from segdist.model.card import HeldOut
from shards.build.mask_search import find_masks, mask_files
from shards.build.pairs import csv_rows
from shards.images.config import synthetic_masks_config
from shards.images.folders import existing_address, hidden_below, images_in, name_of
from shards.images.masks import MaskReader, mask_reader_from_recipe
from shards.images.opening import IMAGE_SUFFIXES, ZARR_SUFFIX, open_image, page_address, page_addresses, split_address
from shards.images.orientation import Orientation, OrientedPair, oriented_pair
from shards.manifest import ClassInfo, SourcePair, read_manifest
from shards.read.reader import ShardSet

HEADER_THREADS = 16
"""Threads that read headers; on network file systems, each header costs a round trip."""


@dataclass(frozen=True)
class InputImage:
    """One image to segment."""

    name: str
    """Unique in the job; names the output files. May contain folders."""
    path: str
    mask: str | None = None
    fold: int = 0
    """The fold that holds it out, and whose model segments it; 0: all models do."""


@dataclass(frozen=True)
class Header:
    """What is known about an image without decoding it, or in `error` why it can't be opened."""

    height: int = 0
    width: int = 0
    channels: int = 0
    dtype: str = ""
    windowed: bool = True
    size: int = 0
    """File size in bytes; together with `changed` (nanoseconds), it shows whether the file was modified."""
    changed: int = 0
    upright: bool = True
    """Image and mask are rotated by their orientation tags."""
    alpha: int = 0
    """Number of channels that are ignored because they are tagged as transparency."""
    error: str = ""
    pair: OrientedPair | None = None
    """The orientation tags of the image and its mask."""

    def turned(self, orientation: Orientation) -> "Header":
        """The header after deciding whether to apply a tag that only one of image and mask has."""
        if self.pair is None or self.pair.upright(orientation):
            return self
        height, width = self.pair.image_stored
        return replace(self, height=height, width=width, upright=False)

    @property
    def pixels(self) -> int:
        return self.height * self.width


@dataclass(frozen=True)
class Inputs:
    """The images of a job, and how to read their masks."""

    label: str
    """Name of the predictions in the run folder."""
    root: str
    """The folder that contains all images, resolved; names of results are paths below it."""
    images: list[InputImage]
    masks: MaskReader | None
    """Reads the masks as the model's labels."""
    orientation: Orientation
    """As configured, or as the shard set decided."""


def find_inputs(config: InferConfig, classes: tuple[ClassInfo, ...], held_out: Sequence[HeldOut | None] = ()) -> Inputs:
    """The images that `config` names.

    Args:
        classes: the model's; also those of the masks, unless `masks.classes` is set.
        held_out: the images that each model was not trained on, for `out_of_fold`.

    Raises:
        UserError: no images were found, names clash, a mask is missing, or the masks' classes aren't the model's.
    """
    if config.data:
        return _of_shard_set(config, classes, held_out)
    images: list[Named] = []
    roots = []
    for pattern in config.images:
        found, root = _expand(pattern)
        images += found
        roots.append(root)
    # The same file may be given twice, by a folder and by a glob.
    images = list({_identity(found[0]): found for found in images}.values())
    if not images:
        raise UserError(f"--images {' '.join(config.images)}: no images found (looked for {' '.join(IMAGE_SUFFIXES)})")
    masks_of = [mask for _, mask, _ in images]
    if config.masks.folder is not None:
        masks_of = _masks_of(images, config.masks.folder, config.masks.name)
    masks = None
    if any(masks_of):
        masks = MaskReader(config.masks if config.masks.classes else synthetic_masks_config(classes))
        masks = _as_the_model_counts(masks, classes, "--masks.classes")
    first = Path(config.images[0])
    label = first.name if first.is_dir() else first.stem if len(config.images) == 1 else first.parent.name
    return _inputs(
        label.replace("*", "") or "images", os.path.commonpath(roots), images, masks_of, masks, config.orientation
    )


def _of_shard_set(config: InferConfig, classes: tuple[ClassInfo, ...], held_out: Sequence[HeldOut | None]) -> Inputs:
    folder = set_dir(config.data)
    if not isinstance(folder, Path):
        raise UserError(f"--data {folder}: the images of a set behind a URL are not local; give them with --images")
    manifest = read_manifest(folder)
    sources: Sequence[SourcePair] = manifest.sources.get(config.split, ())
    folds: list[int] | None = None
    what: str = config.split
    if config.out_of_fold:
        partition = divide_as_trained(ShardSet(folder), held_out)
        sources, folds, what = partition.pairs, partition.folds.tolist(), "out-of-fold"
    if not sources:
        raise UserError(f"--data {config.data} --split {config.split}: the shard set has no such images")
    paths = [str(folder / pair.image) for pair in sources]
    images: list[Named] = [(path, None, Path(path)) for path in paths]
    masks_of = [str(folder / pair.mask) if pair.mask else None for pair in sources]
    masks = None
    if any(masks_of):
        masks = _as_the_model_counts(mask_reader_from_recipe(manifest.recipe), classes, f"--data {config.data}")
    label = folder.resolve().name + ("" if what == "test" else f"-{what}")
    # Sets older than this setting applied the tags.
    orientation = config.orientation
    if orientation == "auto":
        orientation = manifest.recipe.get("images", {}).get("orientation", "apply")
    inputs = _inputs(label, _common_folder(paths), images, masks_of, masks, orientation)
    if folds is not None:
        images_of_folds = zip(inputs.images, folds, strict=True)
        inputs = replace(inputs, images=[replace(image, fold=fold) for image, fold in images_of_folds])
    return inputs


def _inputs(
    label: str,
    root: str,
    images: list["Named"],
    masks_of: Sequence[str | None],
    masks: MaskReader | None,
    orientation: Orientation,
) -> Inputs:
    # A pattern may match images outside the root.
    root = os.path.commonpath([root, _common_folder([path for path, _, _ in images])])
    names = result_names([os.path.relpath(os.path.abspath(path), root) for path, _, _ in images])
    found = [InputImage(name, path, mask) for name, (path, _, _), mask in zip(names, images, masks_of, strict=True)]
    return Inputs(label, os.path.realpath(root), found, masks, orientation)


def _as_the_model_counts(masks: MaskReader, classes: tuple[ClassInfo, ...], origin: str) -> MaskReader:
    """A reader of `masks` that returns the model's labels: classes are matched by name, not by order."""
    theirs, ours = [info.name for info in masks.classes], [info.name for info in classes]
    if sorted(theirs) != sorted(ours):
        raise UserError(
            f"{origin}: the masks have the classes {', '.join(theirs)}, but the model has {', '.join(ours)}; scores "
            "need the same names, in any order. Name them as in the model, or segment without masks (--images alone)"
        )
    return masks.in_order_of(ours)


def read_headers(images: list[InputImage], channels: int, masks: MaskReader | None) -> list[Header]:
    """Read the header of each image, for a model with `channels` channels, and the orientation tag of its mask."""
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
                alpha=opened.alpha,
            )
            if image.mask and masks:
                # Errors in the mask are reported when it is read.
                with contextlib.suppress(UserError), masks.open(image.mask) as mask:
                    header = replace(header, pair=oriented_pair(opened, mask.file))
            return header
    except UserError as error:
        return Header(error=str(error))
    except OSError as error:
        return Header(error=f"{image.path}: can't be read ({error.strerror})")


Named = tuple[str, str | None, Path]
"""An image, its mask if a CSV file names one, and its path in the folder that the user gave."""


def _expand(pattern: str) -> tuple[list[Named], str]:
    """The images that one argument names, and the folder they come from, where more images may appear later."""
    path = Path(pattern)
    if path.suffix.lower() == ".csv" and path.is_file():
        rows = _read_csv(path)
        return rows, _common_folder([image for image, _, _ in rows])
    if path.is_dir() and path.suffix.lower() != ZARR_SUFFIX:
        with ThreadPoolExecutor(HEADER_THREADS) as pool:  # keeps the order
            pages = [page for of_file in pool.map(_pages, images_in(path, skip_unreadable=True)) for page in of_file]
        return [(str(page), None, page.relative_to(path)) for page in pages], os.path.abspath(path)
    if path.exists():
        return [(str(page), None, Path(page.name)) for page in _pages(path)], _common_folder([pattern])
    if split_address(pattern)[0].exists():
        return [(pattern, None, Path(path.name))], _common_folder([pattern])
    fixed = os.path.dirname(re.split(r"[*?[]", pattern)[0])
    found = [match for match in sorted(glob.glob(pattern, recursive=True)) if not hidden_below(match, fixed)]
    if not found:
        raise UserError(f"--images {pattern}: no such file or folder, and no file matches it as a pattern")
    return [pair for match in found for pair in _expand(match)[0]], os.path.abspath(fixed)


def _identity(address: str) -> tuple[str, int]:
    path, page = split_address(address)
    return os.path.abspath(path), page


def _common_folder(paths: Sequence[str]) -> str:
    return os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])


def _read_csv(path: Path) -> list[Named]:
    """Rows of a CSV file with a column `image` and optionally `mask`; paths are relative to the file."""
    rows = csv_rows(path)
    if not rows or "image" not in rows[0]:
        raise UserError(f"{path}: needs a header line with a column `image` (and optionally `mask`), and rows below it")
    if empty := [number for number, row in enumerate(rows, start=2) if not row["image"]]:
        raise UserError(f"{path} line {empty[0]}: `image` is empty")
    found: list[Named] = []
    for row in rows:
        images = _pages(existing_address(path.parent / row["image"]))
        masks = _pages(existing_address(path.parent / row["mask"])) if row.get("mask") else []
        for place, image in enumerate(images):
            mask = str(_at(masks, place)) if masks else None
            found.append((str(image), mask, Path(row["image"]).with_name(image.name)))
    return found


def _masks_of(images: list[Named], folder: Path, name: str) -> list[str | None]:
    """The mask of each image, found as in `make-shards`; a page of an image has the same page of its mask."""
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
    """All images in a file; the file itself if it can't be opened, which is reported when its header is read."""
    try:
        return page_addresses(path)
    except UserError:
        return [path]


def _at(pages: list[Path], place: int) -> Path:
    """The mask of the image at `place` in its file: the page at the same place. A missing page is reported later."""
    return pages[place] if place < len(pages) else page_address(split_address(pages[0])[0], place)
