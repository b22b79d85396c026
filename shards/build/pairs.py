"""Finding a user's images and their masks. Names and folders only: no file is decoded."""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from segdist.core.errors import UserError
from segdist.core.files import read_text
from shards.build.config import ImagesConfig, MakeShardsConfig
from shards.images.config import MasksConfig
from shards.images.opening import IMAGE_SUFFIXES, ZARR_SUFFIX, page_addresses
from shards.manifest import SPLITS

_BEYOND = "beyond the last heading"
SHOWN = 10
"""Files that a message names."""


@dataclass(frozen=True)
class Pair:
    """An image and its mask."""

    name: str
    """What lists and patterns call the image: its path in the images' folder, or the CSV's text."""
    image: Path
    mask: Path
    split: str = ""
    """Empty until it is dealt."""
    pages: tuple[tuple[Path, Path], ...] = ()
    """Addresses of the images and masks in the two files, once these have been opened."""


def find_pairs(config: MakeShardsConfig) -> list[Pair]:
    """The user's images with their masks and their pages.

    Raises:
        UserError: nothing found, an image without mask, names that can mean two files.
    """
    pairs = _from_csv(config.images.csv) if config.images.csv else _from_folders(config.images, config.masks)
    return [replace(pair, pages=_pages(pair)) for pair in pairs]


def csv_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file under their headings, as spreadsheets write it too: in other encodings than UTF-8, with
    semicolons or tabs, and with short rows, whose missing values are empty.

    Raises:
        UserError: the file can't be read or is no CSV.
    """
    text = read_text(path)
    headings = text.partition("\n")[0]
    delimiter = max(",;\t", key=headings.count)
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restkey=_BEYOND, restval=""))
    except csv.Error as error:
        raise UserError(f"{path}: no CSV file ({error})") from None
    return [{key: value for key, value in row.items() if key != _BEYOND} for row in rows]


def _from_csv(path: Path) -> list[Pair]:
    """Pairs of a CSV file; its paths are relative to its own folder."""
    rows = csv_rows(path)
    if not rows:
        raise UserError(f"{path}: no rows; it needs a line `image,mask` or `image,mask,split` and one line per pair")
    pairs, problems, seen = [], [], Counter[Path]()
    for number, row in enumerate(rows, start=2):
        image, mask, split = ((row.get(key) or "").strip() for key in ("image", "mask", "split"))
        if not image or not mask:
            raise UserError(f"{path} line {number}: needs the columns image and mask, found {dict(row)}")
        if split not in ("", *SPLITS):
            raise UserError(f"{path} line {number}: split {split!r}; train, val, test or empty")
        files = path.parent / image, path.parent / mask
        problems += [f"line {number}: {file} doesn't exist" for file in files if not file.exists()]
        seen[files[0].resolve()] += 1
        pairs.append(Pair(image, *files, split))
    problems += [f"{file} stands there {count} times" for file, count in seen.items() if count > 1]
    if problems:
        raise UserError(f"{path}:\n  " + "\n  ".join(problems[:SHOWN]))
    return pairs


def _from_folders(images: ImagesConfig, masks: MasksConfig) -> list[Pair]:
    """Pairs by name: the mask of `a/b.png` is `a/<name>.*` in the masks' folder."""
    assert images.folder is not None
    folder, mask_folder = images.folder, masks.folder or images.folder
    for path, flag in ((folder, "--images.folder"), (mask_folder, "--masks.folder")):
        if not path.is_dir():
            raise UserError(f"{flag} {path}: no such folder")
    files = [path for path in sorted(folder.glob(images.pattern)) if _is_image(path)]
    found_in = MaskFolder(mask_folder, masks.name, below="/" in images.pattern)

    def masks_of(image: Path) -> list[Path]:
        return [path for path in found_in.masks_of(image.relative_to(folder)) if path != image]

    if masks.folder is None or masks.folder.resolve() == folder.resolve():
        # Masks between the images: what is some image's mask is no image.
        taken = {mask for image in files for mask in masks_of(image)}
        files = [path for path in files if path not in taken]
    if not files:
        raise UserError(
            f"--images.folder {folder}: no image matches {images.pattern!r} (looked for {' '.join(IMAGE_SUFFIXES)})"
        )
    _refuse_same_names(files, folder)
    pairs, without = [], []
    for image in files:
        found = masks_of(image)
        if len(found) == 1:
            pairs.append(Pair(image.relative_to(folder).as_posix(), image, found[0]))
        else:
            without.append((image, found))
    if without:
        raise UserError(found_in.no_mask_message(without))
    return pairs


class MaskFolder:
    """The masks in a folder, found by the names of their images: that of `a/b.png` is `a/<name>.*`."""

    def __init__(self, folder: Path, name: str, below: bool) -> None:
        """`name` holds {stem}, the image's name without suffix. `below`: look in the folders inside as well."""
        self.folder, self.name = folder, name
        self._by_stem: dict[Path, list[Path]] = defaultdict(list)
        for path in sorted(folder.glob("**/*" if below else "*")):
            if _is_image(path) and path.suffix.lower() != ZARR_SUFFIX:
                self._by_stem[path.relative_to(folder).with_name(path.stem)].append(path)

    def masks_of(self, image: Path) -> list[Path]:
        """All files that may be the mask of `image`, a path relative to the images' folder. One is right."""
        return self._by_stem.get(image.with_name(self._wanted(image)), [])

    def no_mask_message(self, without: Sequence[tuple[Path, list[Path]]]) -> str:
        """What to tell of images that have none, or several; with a guess at how the masks are called."""
        lines = []
        for image, found in without[:SHOWN]:
            lines.append(
                f"{image}: {len(found)} masks, {', '.join(path.name for path in found)}"
                if found
                else f"{image}: no {self._wanted(image)}.* in {self.folder}"
            )
        more = f"\n  … and {len(without) - SHOWN} more" if len(without) > SHOWN else ""
        return (
            f"{len(without)} images without exactly one mask:\n  " + "\n  ".join(lines) + more + "\n"
            f"say how masks are called with --masks.name (now {self.name!r}) and where they are with --masks.folder"
            + self._guess(without[0][0].stem)
        )

    def _wanted(self, image: Path) -> str:
        return self.name.replace("{stem}", image.stem)

    def _guess(self, stem: str) -> str:
        hint = "; or take these images away"
        near = [path.name for path in self._by_stem if path.name.startswith(stem) and path.name != stem]
        if not near:
            return hint
        return f"; there is {near[0]}: perhaps --masks.name '{near[0].replace(stem, '{stem}', 1)}'{hint}"


def _refuse_same_names(files: list[Path], folder: Path) -> None:
    stems = Counter(path.relative_to(folder).with_suffix("") for path in files)
    doubles = [str(path) for path in files if stems[path.relative_to(folder).with_suffix("")] > 1]
    if doubles:
        raise UserError(
            "images that differ only in their suffix would share one mask:\n  " + "\n  ".join(doubles[:SHOWN]) + "\n"
            "take the copies away, or choose with --images.pattern '*.png'"
        )


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _pages(pair: Pair) -> tuple[tuple[Path, Path], ...]:
    """The images in a multi-page TIFF, each with the mask's page of the same place; one for everything else."""
    images, masks = page_addresses(pair.image), page_addresses(pair.mask)
    if len(images) != len(masks):
        raise UserError(
            f"{pair.image} has {len(images)} pages and its mask {pair.mask} {len(masks)}; "
            "save one mask page per image page, or the wanted page as a file of its own"
        )
    return tuple(zip(images, masks, strict=True))
