"""Which images an inference job works on, what they are called in the output, and what their headers say."""

import glob
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from segdist.infer_config import InferConfig
from shards.errors import UserError
from shards.images import IMAGE_SUFFIXES, ZARR_SUFFIX, open_image, split_address
from shards.manifest import ClassInfo, read_manifest
from shards.masks import MaskReader, mask_reader_from_recipe, synthetic_masks_config
from shards.names import set_folder
from shards.pairs import csv_rows

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
    error: str = ""

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
    images = list({os.path.abspath(path): (path, mask) for path, mask in images}.values())
    if not images:
        raise UserError(f"--images {' '.join(config.images)}: no images found (looked for {' '.join(IMAGE_SUFFIXES)})")
    named = _named([path for path, _ in images])
    if config.masks.folder is not None:
        images = [(path, str(_mask_of(path, config.masks.folder, config.masks.name))) for path, _ in images]
    found = [InputImage(name, path, mask) for name, (path, mask) in zip(named, images, strict=True)]
    masks = None
    if any(image.mask for image in found):
        masks = MaskReader(config.masks if config.masks.classes else synthetic_masks_config(classes))
    first = Path(config.images[0])
    label = first.name if first.is_dir() else first.stem if len(config.images) == 1 else first.parent.name
    return Inputs(label.replace("*", "") or "images", found, masks)


def read_headers(images: list[InputImage]) -> list[Header]:
    """The header of each image."""
    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        return list(pool.map(_header, images))


def _header(image: InputImage) -> Header:
    try:
        with open_image(image.path) as opened:
            status = os.stat(split_address(image.path)[0])
            return Header(
                opened.height,
                opened.width,
                opened.channels,
                str(opened.dtype),
                opened.windowed,
                status.st_size,
                status.st_mtime_ns,
            )
    except UserError as error:
        return Header(error=str(error))


def _of_shard_set(config: InferConfig) -> Inputs:
    folder = Path(set_folder(config.data))
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
    return Inputs(label, images, mask_reader_from_recipe(manifest.recipe))


def _expand(pattern: str) -> list[tuple[str, str | None]]:
    """(image, mask) for what one argument names."""
    path = Path(pattern)
    if path.suffix.lower() == ".csv" and path.is_file():
        return _read_csv(path)
    if path.is_dir() and path.suffix.lower() != ZARR_SUFFIX:
        return [(str(file), None) for file in _images_below(path)]
    if split_address(pattern)[0].exists():
        return [(pattern, None)]
    found = sorted(glob.glob(pattern, recursive=True))
    if not found:
        raise UserError(f"--images {pattern}: no such file or folder, and as a pattern it matches nothing")
    return [pair for match in found for pair in _expand(match)]


def _images_below(folder: Path) -> list[Path]:
    """Images in a folder and its subfolders, sorted; Zarr images are folders themselves."""
    found = []
    for parent, folders, files in os.walk(folder):
        zarrs = [name for name in folders if name.lower().endswith(ZARR_SUFFIX)]
        folders[:] = sorted(set(folders) - set(zarrs))
        names = zarrs + [name for name in files if name.lower().endswith(IMAGE_SUFFIXES)]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(found)


def _read_csv(path: Path) -> list[tuple[str, str | None]]:
    """Rows of a CSV file with a column `image` and optionally `mask`; paths are relative to the file."""
    rows = csv_rows(path)
    if not rows or "image" not in rows[0]:
        raise UserError(f"{path}: needs a header line with a column `image` (and optionally `mask`), and rows below it")
    return [
        (str(path.parent / row["image"]), str(path.parent / row["mask"]) if row.get("mask") else None) for row in rows
    ]


def _mask_of(image: str, folder: Path, pattern: str) -> Path:
    name = pattern.replace("{stem}", Path(image).stem)
    for suffix in IMAGE_SUFFIXES:
        for candidate in (folder / f"{name}{suffix}", folder / f"{name}{suffix.upper()}"):
            if candidate.exists():
                return candidate
    raise UserError(f"{image}: no mask {folder / name} with an image's suffix; see --masks.name")


def _named(paths: list[str]) -> list[str]:
    """Output names: paths without suffix, relative to the folder that all have in common.

    Images that differ in the suffix alone keep it.
    """
    absolute = [_named_page(Path(os.path.abspath(path))) for path in paths]
    common = Path(os.path.commonpath([path.parent for path in absolute]))
    names = [path.relative_to(common) for path in absolute]
    uses = Counter(name.with_suffix("") for name in names)
    return [str(name.with_suffix("") if uses[name.with_suffix("")] == 1 else name) for name in names]


def _named_page(address: Path) -> Path:
    """`stack.tif#page=3` as `stack-page3.tif`."""
    path, page = split_address(address)
    return path.with_name(f"{path.stem}-page{page}{path.suffix}") if page else path
