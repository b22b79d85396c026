"""Dealing images to the splits, by what the user names and by shares that are drawn. Names only: no file is opened."""

import re
from collections import defaultdict
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from segdist.core.errors import UserError
from segdist.core.files import read_text
from segdist.core.keyed import Purpose, generator
from shards.build.config import SplitConfig
from shards.build.pairs import SHOWN, Pair


def deal(pairs: list[Pair], settings: SplitConfig, seed: int) -> list[Pair]:
    """Give every pair its split; pairs that the lists leave out are dropped.

    What the CSV, the lists and the name patterns say stands. Of the others, the share `test` is held out; and where
    nothing names validation images, the share `validation` of the training images validates. Shares are drawn by
    group.

    Raises:
        UserError: an image or a group in two splits, or a listed name that is no image.
    """
    pairs = _named_splits(pairs, settings)
    groups = {pair.name: _group(pair.name, settings.group) for pair in pairs}
    spread = defaultdict(set)
    for pair in pairs:
        spread[groups[pair.name]].add(pair.split)
    # Images of a group follow those that were named.
    for group, splits in spread.items():
        if len(splits - {""}) > 1:
            members = [f"{pair.name} ({pair.split})" for pair in pairs if groups[pair.name] == group and pair.split]
            raise UserError(f"--split.group: {group!r} stands in two splits:\n  " + "\n  ".join(members[:SHOWN]))
    follow = {group: max(splits) for group, splits in spread.items()}
    pairs = [replace(pair, split=follow[groups[pair.name]]) for pair in pairs]
    if settings.test:
        pairs = _draw(pairs, "", "test", settings.test, (seed, Purpose.TEST_SPLIT), groups)
    pairs = [replace(pair, split=pair.split or "train") for pair in pairs]
    if not any(pair.split == "val" for pair in pairs):
        pairs = _draw(pairs, "train", "val", settings.validation, (seed, Purpose.VALIDATION_SPLIT), groups)
    return pairs


def _draw(
    pairs: list[Pair], of: str, to: str, share: float, key: tuple[int, int], groups: dict[str, str]
) -> list[Pair]:
    """Move a share of the groups in split `of` to split `to`."""
    candidates = sorted({groups[pair.name] for pair in pairs if pair.split == of})
    chosen = {candidates[number] for number in chosen_numbers(len(candidates), share, *key)}
    return [replace(pair, split=to) if pair.split == of and groups[pair.name] in chosen else pair for pair in pairs]


def _named_splits(pairs: list[Pair], settings: SplitConfig) -> list[Pair]:
    """Splits that the CSV, the lists and the patterns name."""
    said: dict[str, dict[str, str]] = defaultdict(dict)  # name → split → who says so
    for pair in pairs:
        if pair.split:
            said[pair.name][pair.split] = "the CSV file"
    for split, path in (
        ("train", settings.train_list),
        ("val", settings.validation_list),
        ("test", settings.test_list),
    ):
        for name in _listed(path, pairs) if path else ():
            said[name][split] = str(path)
    for split, flag, patterns in (
        ("val", "--split.validation-images", settings.validation_images),
        ("test", "--split.test-images", settings.test_images),
    ):
        for pattern in patterns:
            matching = [pair.name for pair in pairs if any(fnmatchcase(name, pattern) for name in _names(pair))]
            if not matching:
                raise UserError(f"{flag} {pattern!r}: no image has such a name")
            for name in matching:
                said[name][split] = f"{flag} {pattern!r}"
    doubles = [
        f"{name}: " + ", ".join(f"{split} by {where}" for split, where in who.items())
        for name, who in said.items()
        if len(who) > 1
    ]
    if doubles:
        raise UserError(
            "images in two splits, which would make the scores worthless:\n  " + "\n  ".join(doubles[:SHOWN]) + "\n"
            "name each image for one split only"
        )
    dealt = [replace(pair, split=next(iter(said[pair.name]), "")) for pair in pairs]
    return [pair for pair in dealt if pair.split] if settings.train_list else dealt


def _listed(path: Path, pairs: list[Pair]) -> list[str]:
    """The names of the pairs that a text file lists, one a line."""
    lines = [line.strip() for line in read_text(path).splitlines()]
    by_name: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        for name in _names(pair):
            by_name[name].add(pair.name)
    names: list[str] = []
    problems = []
    for line in filter(None, lines):
        found = by_name.get(line, set())
        if len(found) == 1:
            names += found
        else:
            problems.append(f"{line!r} " + (f"means {', '.join(sorted(found))}" if found else "is no image's name"))
    if problems:
        raise UserError(f"{path}:\n  " + "\n  ".join(problems[:SHOWN]))
    return names


def _names(pair: Pair) -> tuple[str, str, str]:
    """All that a list may call a pair: its path in the folder, its file's name, the name without suffix."""
    return pair.name, pair.image.name, pair.image.stem


def _group(name: str, pattern: str) -> str:
    if not pattern:
        return name
    try:
        match = re.search(pattern, name)
    except re.error as error:
        raise UserError(f"--split.group {pattern!r}: no regular expression ({error})") from None
    if match is None:
        raise UserError(f"--split.group {pattern!r}: doesn't match the image {name}")
    return match[match.lastindex or 0]


def chosen_numbers(count: int, share: float, *key: int) -> set[int]:
    """Which of `count` images (or groups) a split gets, drawn by `key`: the share rounded, at least one, never all."""
    if share == 0 or count < 2:
        return set()
    chosen = min(max(1, round(share * count)), count - 1)
    return set(generator(*key).permutation(count)[:chosen].tolist())
