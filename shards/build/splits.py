"""Assign images to splits, by the user's lists and by random fractions. Uses names only; opens no image."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from segdist.core.errors import UserError
from segdist.core.files import read_text
from segdist.core.keyed import Purpose, generator
from shards.build.config import SplitConfig
from shards.images.folders import composed

SHOWN = 10
"""Maximum number of names in a message."""


@dataclass(frozen=True)
class Entry:
    """What is assigned to a split: an image, or a page of one."""

    name: str
    """The name used in lists and patterns: its path in the images' folder, or the text in the CSV file."""
    page: int | None = None
    """Number of the page; None if the file holds one image."""
    split: str = ""
    """Empty until assigned."""
    group: str = ""
    """Set with the split, as in `shards.manifest.SourcePair`: empty if the file is its own group."""

    @property
    def shown(self) -> str:
        return self.name if self.page is None else f"{self.name}#page={self.page}"

    def names(self) -> tuple[str, ...]:
        """All names that a list can use for it: its path in the folder, its file name, the name without suffix, and
        each of these followed by the page."""
        path = PurePosixPath(composed(self.name))
        names = (str(path), path.name, path.stem)
        return names if self.page is None else (*names, *(f"{name}#page={self.page}" for name in names))


def deal(entries: Sequence[Entry], settings: SplitConfig, seed: int) -> list[Entry]:
    """Assign every entry to a split, keeping their order; entries in no list keep none if there are lists.

    The CSV file, the lists and the name patterns take precedence. Of the other entries, the fraction `test` is held
    out; and if nothing names validation images, the fraction `validation` of the training images is used for
    validation. Fractions are drawn by group. The pages of a file are one group, unless some pages are named
    individually.

    Raises:
        UserError: an image or a group in two splits, or a listed name that matches no image.
    """
    everything = list(entries)
    chosen, entries, groups = _grouped(entries, settings)
    if settings.test:
        entries = _draw(entries, groups, "", "test", settings.test, (seed, Purpose.TEST_SPLIT))
    entries = [replace(entry, split=entry.split or "train") for entry in entries]
    if not any(entry.split == "val" for entry in entries):
        entries = _draw(entries, groups, "train", "val", settings.validation or 0, (seed, Purpose.VALIDATION_SPLIT))
    for number, entry in zip(chosen, entries, strict=True):
        everything[number] = entry
    return everything


def named_groups(entries: Sequence[Entry], settings: SplitConfig) -> Counter[str]:
    """The number of image groups that the user assigns to each split, and under "" of those in none.

    Raises:
        UserError: as `deal`.
    """
    _, entries, groups = _grouped(entries, settings)
    splits = {group: entry.split for entry, group in zip(entries, groups, strict=True)}
    return Counter(splits.values())


def _grouped(entries: Sequence[Entry], settings: SplitConfig) -> tuple[list[int], list[Entry], list[str]]:
    """The entries in use: their numbers, the entries with their named splits, and their groups."""
    named, by_page = _named_splits(entries, settings)
    chosen = [number for number, entry in enumerate(named) if entry.split or not settings.train_list]
    entries = [named[number] for number in chosen]
    groups = [_group(entry, settings.group, by_page) for entry in entries]
    spread = defaultdict(set)
    for entry, group in zip(entries, groups, strict=True):
        spread[group].add(entry.split)
    # Images of a group follow its named members.
    for group, splits in spread.items():
        if len(splits - {""}) > 1:
            pairs = zip(entries, groups, strict=True)
            members = [f"{entry.shown} ({entry.split})" for entry, own in pairs if own == group and entry.split]
            raise UserError(
                f"--split.group: the group {group!r} is assigned to two splits:\n  " + "\n  ".join(members[:SHOWN])
            )
    entries = [
        replace(entry, split=max(spread[group]), group=group if settings.group or group != entry.name else "")
        for entry, group in zip(entries, groups, strict=True)
    ]
    return chosen, entries, groups


def names_kept(entries: Collection[Entry], settings: SplitConfig) -> set[str]:
    """The names of the files in use: with a list of training images, only those that are named somewhere, whole or by
    page; otherwise all. `deal` reports problems with lists and patterns."""
    if not settings.train_list:
        return {entry.name for entry in entries}
    by_name: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        for name in entry.names():
            by_name[name].add(entry.name)
    kept: set[str] = set()
    for path in (settings.train_list, settings.validation_list, settings.test_list):
        for line in list_lines(path) if path else ():
            kept |= by_name.get(line, set()) or by_name.get(line.rpartition("#page=")[0], set())
    for pattern in map(composed, (*settings.validation_images, *settings.test_images)):
        file_pattern = pattern.rpartition("#page")[0] or pattern
        kept |= by_name.get(pattern, set()) or {
            entry.name for entry in entries if any(fnmatchcase(name, file_pattern) for name in entry.names())
        }
    return kept


def _draw(entries: list[Entry], groups: list[str], of: str, to: str, share: float, key: tuple[int, int]) -> list[Entry]:
    """Move a fraction of the groups in split `of` to split `to`."""
    candidates = sorted({group for entry, group in zip(entries, groups, strict=True) if entry.split == of})
    chosen = {candidates[number] for number in chosen_numbers(len(candidates), share, *key)}
    return [
        replace(entry, split=to) if entry.split == of and group in chosen else entry
        for entry, group in zip(entries, groups, strict=True)
    ]


def _named_splits(entries: Sequence[Entry], settings: SplitConfig) -> tuple[list[Entry], set[str]]:
    """The splits named by the CSV file, the lists and the patterns, and the files whose pages are named
    individually."""
    said: dict[int, dict[str, str]] = defaultdict(dict)  # entry → split → where it says so
    by_page: set[str] = set()

    def say(numbers: Collection[int], split: str, who: str, text: str) -> None:
        for number in numbers:
            said[number][split] = who
            if "#page" in text and entries[number].page is not None:
                by_page.add(entries[number].name)

    for number, entry in enumerate(entries):
        if entry.split:
            say([number], entry.split, "the CSV file", "")
    by_name: dict[str, list[int]] = defaultdict(list)
    for number, entry in enumerate(entries):
        for name in dict.fromkeys(entry.names()):
            by_name[name].append(number)
    for split, path in (
        ("train", settings.train_list),
        ("val", settings.validation_list),
        ("test", settings.test_list),
    ):
        for line, numbers in _listed(path, entries, by_name) if path else ():
            say(numbers, split, str(path), line)
    for split, flag, patterns in (
        ("val", "--split.validation-images", settings.validation_images),
        ("test", "--split.test-images", settings.test_images),
    ):
        for pattern in patterns:
            # Try a name literally before reading it as a pattern: `[x=0,y=0]` may be one.
            matching = by_name.get(composed(pattern)) or [
                number
                for number, entry in enumerate(entries)
                if any(fnmatchcase(name, composed(pattern)) for name in entry.names())
            ]
            if not matching:
                raise UserError(f"{flag} {pattern!r}: no image has this name")
            say(matching, split, f"{flag} {pattern!r}", pattern)
    doubles = [
        f"{entries[number].shown}: " + ", ".join(f"{split} by {where}" for split, where in who.items())
        for number, who in sorted(said.items())
        if len(who) > 1
    ]
    if doubles:
        raise UserError(
            "images in two splits, which would make the scores worthless:\n  " + "\n  ".join(doubles[:SHOWN]) + "\n"
            "assign each image to only one split"
        )
    named = [replace(entry, split=next(iter(said[number]), "")) for number, entry in enumerate(entries)]
    return named, by_page


def _listed(path: Path, entries: Sequence[Entry], by_name: dict[str, list[int]]) -> Iterator[tuple[str, list[int]]]:
    """The entries that each line of a text file names: one image, or all pages of one file."""
    problems, listed = [], []
    for line in list_lines(path):
        numbers = by_name.get(line, [])
        files = {entries[number].name for number in numbers}
        if len(files) == 1:
            listed.append((line, numbers))
        else:
            problems.append(
                f"{line!r} " + (f"is ambiguous: {', '.join(sorted(files))}" if files else "matches no image")
            )
    if problems:
        raise UserError(f"{path}:\n  " + "\n  ".join(problems[:SHOWN]))
    yield from listed


def list_lines(path: Path) -> list[str]:
    """The non-empty lines of a text file, in composed form (NFC). Raises UserError if it can't be read."""
    return [composed(line.strip()) for line in read_text(path).splitlines() if line.strip()]


def _group(entry: Entry, pattern: str, by_page: set[str]) -> str:
    if not pattern:
        return entry.shown if entry.name in by_page else entry.name
    try:
        match = re.search(pattern, composed(entry.shown if "#page" in pattern else entry.name))
    except re.error as error:
        raise UserError(f"--split.group {pattern!r}: not a regular expression ({error})") from None
    if match is None:
        raise UserError(f"--split.group {pattern!r}: doesn't match the image {entry.shown}")
    return match[match.lastindex or 0]


def chosen_numbers(count: int, share: float, *key: int) -> set[int]:
    """The images (or groups) out of `count` for a split, drawn by `key`: the rounded fraction, at least one, never
    all."""
    if share == 0 or count < 2:
        return set()
    chosen = min(max(1, round(share * count)), count - 1)
    return set(generator(*key).permutation(count)[:chosen].tolist())
