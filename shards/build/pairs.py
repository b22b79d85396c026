"""Find a user's images and their masks, in folders or a CSV file. No pixel is decoded."""

import csv
import io
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from segdist.core.errors import UserError
from segdist.core.files import read_text
from shards.build.config import MakeShardsConfig
from shards.build.mask_search import SHOWN, FoundMasks, find_masks, mask_files
from shards.build.one_folder import divisions
from shards.build.splits import Entry, names_kept
from shards.images.folders import existing_address, images_in, name_of
from shards.images.mask_names import EXACT, MaskRule
from shards.images.opening import IMAGE_SUFFIXES, page_addresses, split_address
from shards.manifest import SPLITS

_BEYOND = "beyond the last heading"


@dataclass(frozen=True)
class Pair:
    """An image and its mask: two files, or a page of each."""

    entry: Entry
    image: Path
    """The file, or the address of a page in it (`shards.images.opening.page_address`); so is `mask`."""
    mask: Path


@dataclass(frozen=True)
class Pairs:
    """A user's labeled images."""

    pairs: tuple[Pair, ...]
    rule: str = EXACT
    """The naming rule: from `--masks.name`, or the one that was found."""
    notes: tuple[str, ...] = ()
    """Messages for the user about how they were found."""


def find_pairs(config: MakeShardsConfig) -> Pairs:
    """The user's images with their masks, page by page. Images that are in no list need no mask.

    Raises:
        UserError: nothing found, an image without mask, ambiguous names.
    """
    if config.images.csv:
        return Pairs(tuple(page for pair in _from_csv(config.images.csv) for page in _pages(pair)))
    files, masks = _listed_files(config)
    folder = config.images.folder
    assert folder is not None
    entries = {image: Entry(image.relative_to(folder).as_posix()) for image in files}
    kept = names_kept(entries.values(), config.split)
    pairs = [
        Pair(entry, image, masks.masks[name_of(image.relative_to(folder))])
        for image, entry in entries.items()
        if entry.name in kept and name_of(image.relative_to(folder)) in masks.masks
    ]
    notes = masks.notes
    if without := sum(entry.name in kept for entry in entries.values()) - len(pairs):
        notes = (*notes, f"{without} images have no mask and are left out (--images.unlabelled skip)")
    return Pairs(tuple(page for pair in pairs for page in _pages(pair)), masks.rule, notes)


def csv_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, keyed by heading. Also reads what spreadsheets write: encodings other than UTF-8,
    semicolons or tabs, and short rows, whose missing values become empty.

    Raises:
        UserError: the file can't be read or isn't a CSV file.
    """
    text = read_text(path)
    headings = text.partition("\n")[0]
    delimiter = max(",;\t", key=headings.count)
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restkey=_BEYOND, restval=""))
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file ({error})") from None
    return [{key: value for key, value in row.items() if key != _BEYOND} for row in rows]


def _from_csv(path: Path) -> list[Pair]:
    """Pairs from a CSV file; its paths are relative to its own folder and can name pages (`stack.tif#page=3`)."""
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
        files = [existing_address(path.parent / name) for name in (image, mask)]
        problems += [
            f"line {number}: {file} doesn't exist"
            for file in files
            if not (file.exists() or split_address(file)[0].exists())
        ]
        seen[files[0].resolve()] += 1
        pairs.append(Pair(Entry(image, split=split), files[0], files[1]))
    problems += [f"{file} is listed {count} times" for file, count in seen.items() if count > 1]
    if problems:
        raise UserError(f"{path}:\n  " + "\n  ".join(problems[:SHOWN]))
    return pairs


def _listed_files(config: MakeShardsConfig) -> tuple[list[Path], FoundMasks]:
    """The images in the folder, and the masks of those that need one."""
    images, masks = config.images, config.masks
    assert images.folder is not None
    for path, flag in ((images.folder, "--images.folder"), (masks.folder or images.folder, "--masks.folder")):
        if not path.is_dir():
            raise UserError(f"{flag} {path}: no such folder")
    files = images_in(images.folder, images.pattern)
    if not files:
        inside = len(images_in(images.folder)) if "/" not in images.pattern else 0
        hint = f"; {inside} are in subfolders: --images.pattern '**/{images.pattern}'" if inside else ""
        raise UserError(
            f"--images.folder {images.folder}: no image matches {images.pattern!r} "
            f"(looked for {' '.join(IMAGE_SUFFIXES)}){hint}"
        )
    below = "/" in images.pattern
    if masks.folder is None or masks.folder.resolve() == images.folder.resolve():
        files, candidates = _one_folder(config, files, mask_files(images.folder, below))
        mask_folder = images.folder
    else:
        mask_folder = masks.folder
        candidates = mask_files(mask_folder, below)
        # One of the two folders may be inside the other.
        files = [path for path in files if not _is_below(path, mask_folder, images.folder)]
        candidates = [path for path in candidates if not _is_below(path, images.folder, mask_folder)]
    _refuse_same_names(files, images.folder)
    return files, _search(config, files, candidates, mask_folder)


def _search(config: MakeShardsConfig, files: list[Path], masks: list[Path], folder: Path) -> FoundMasks:
    """The masks of the images that are in use and not exempted by `--images.unlabelled`."""
    assert config.images.folder is not None
    by_name = {name_of(path.relative_to(config.images.folder)): path for path in files}
    needed: Collection[str] = ()
    if config.images.unlabelled == "refuse":
        place = {name: path.relative_to(config.images.folder).as_posix() for name, path in by_name.items()}
        kept = names_kept([Entry(name) for name in place.values()], config.split)
        needed = [name for name in by_name if place[name] in kept]
    return find_masks(by_name, masks, folder, config.masks.name, needed)


def _one_folder(config: MakeShardsConfig, files: list[Path], masks: list[Path]) -> tuple[list[Path], list[Path]]:
    """The files that are images and those that may be masks, if both are in one folder."""
    folder = config.images.folder
    assert folder is not None
    if config.masks.name:
        # A file that is some image's mask is not an image. A file is not its own mask.
        rule = MaskRule(config.masks.name)
        wanted = {rule.mask_of(name_of(path.relative_to(folder))) for path in files}
        others = [path for path in masks if path not in set(files)]
        taken = [path for path in files if name_of(path.relative_to(folder)) in wanted] if rule.text != EXACT else []
        return [path for path in files if path not in set(taken)], [*others, *taken]
    fits: dict[tuple[Path, ...], tuple[list[Path], list[Path], FoundMasks]] = {}
    choices = list(divisions(files, folder))
    others = [path for path in masks if path not in set(files)]
    if others:  # the pattern selects images; the remaining files may be the masks
        choices.insert(0, (files, others))
    problem = ""
    for images, rest in choices:
        try:
            _refuse_same_names(images, folder)
            found = _search(config, images, rest, folder)
        except UserError as error:
            problem = problem or str(error)
            continue
        if len(found.masks) == len(rest) or config.images.pattern != "*":
            fits.setdefault(tuple(images), (images, rest, found))
    if len(fits) == 1:
        images, rest, _ = next(iter(fits.values()))
        return images, rest
    raise UserError(_undivided(folder, files, [found for _, _, found in fits.values()], problem))


def _undivided(folder: Path, files: list[Path], fits: list[FoundMasks], problem: str) -> str:
    ways = (
        "select the images with --images.pattern ('*.jpg') and give the masks' naming rule with --masks.name "
        "('{stem}_mask'), move the masks to a folder of their own (--masks.folder), or pair them in a CSV file "
        "(--images.csv)"
    )
    if fits:
        lines = [found.notes[0] for found in fits[:SHOWN]]
        return (
            f"{folder}: its files can be divided into images and masks in several ways:\n  "
            + "\n  ".join(lines)
            + f"\n{ways}"
        )
    shown = ", ".join(path.name for path in files[:3]) + (", …" if len(files) > 3 else "")
    tried = f"\nthe most likely way fails: {problem}" if problem else ""
    return f"{folder}: can't tell which of its {len(files)} files ({shown}) are the masks; {ways}{tried}"


def _is_below(path: Path, inner: Path, outer: Path) -> bool:
    """True if `path` is in the folder `inner`, which is itself in `outer`."""
    return inner.resolve().is_relative_to(outer.resolve()) and path.resolve().is_relative_to(inner.resolve())


def _refuse_same_names(files: list[Path], folder: Path) -> None:
    names = Counter(name_of(path.relative_to(folder)) for path in files)
    doubles = [str(path) for path in files if names[name_of(path.relative_to(folder))] > 1]
    if doubles:
        raise UserError(
            "images that differ only in their suffix would share one mask:\n  " + "\n  ".join(doubles[:SHOWN]) + "\n"
            "remove the copies, or select one kind with --images.pattern '*.png'"
        )


def _pages(pair: Pair) -> list[Pair]:
    """The images in a multi-page TIFF, each with the same page of the mask; a single pair for anything else."""
    images, masks = ([path] if "#page=" in path.name else page_addresses(path) for path in (pair.image, pair.mask))
    if len(images) != len(masks):
        raise UserError(
            f"{pair.image} has {len(images)} pages and its mask {pair.mask} {len(masks)}; "
            "save one mask page per image page, or save the page you need as a separate file"
            + ("; if the pages are channels of one image, save them as channels of one page" if len(masks) == 1 else "")
        )
    if len(images) == 1:
        return [Pair(pair.entry, images[0], masks[0])]
    return [
        Pair(replace(pair.entry, page=split_address(image)[1]), image, mask)
        for image, mask in zip(images, masks, strict=True)
    ]
