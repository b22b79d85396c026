"""Folds for cross-validation: which labeled images of a shard set are held out, and the set without them.

The training and validation images form the folds, with all images of a group in one fold. Nothing is copied: a fold's
training data is a list of record ranges, which are runs of records in one shard whose images are not held out.

K classes, S labeled images, G groups of them.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from segdist.core.errors import UserError
from segdist.core.fold import Fold
from segdist.core.keyed import Purpose, generator
from shards.manifest import Manifest, SourcePair, combined_statistics
from shards.read.order import Int64
from shards.read.reader import ShardSet

SPLITS = ("train", "val")
GROUPS_SINCE = 3
"""Format version of the first manifest that records groups."""
ROWS_AT_ONCE = 64
"""Records read at once for the mean and standard deviation."""


@dataclass(frozen=True)
class Partition:
    """The labeled images of a set, divided into folds."""

    sources: tuple[tuple[str, int], ...]
    """Split of each image, and its number there; S entries."""
    pairs: tuple[SourcePair, ...]
    folds: Int64
    """(S,): the fold that holds the image out, from 1."""
    groups: Int64
    """(S,): the number of the image's group."""
    class_groups: Int64
    """(K,): in how many groups each class occurs, judging by the patches."""
    missing: tuple[tuple[int, ...], ...]
    """Per class, the folds whose held-out patches lack it."""

    def held_out(self, number: int) -> set[tuple[str, int]]:
        """Split and number of the images that fold `number` holds out."""
        return {source for source, fold in zip(self.sources, self.folds.tolist(), strict=True) if fold == number}


def divide(shard_set: ShardSet, count: int, seed: int) -> Partition:
    """Divide the labeled images into `count` folds of about equal size, the same for any number of ranks.

    Stratified: groups with the rarest class are assigned first, each to the fold with the fewest groups of that class,
    and among those to the one with the fewest images (after Sechidis et al., "On the stratification of multi-label
    data", 2011). Images with the same content form one group; otherwise, a copy could be in training.

    Raises:
        UserError: fewer groups than folds; a damaged index; a set whose groups aren't known.
    """
    manifest = shard_set.manifest
    sources = [(split, number) for split in SPLITS for number in range(len(manifest.sources.get(split, ())))]
    pairs = [manifest.sources[split][number] for split, number in sources]
    _refuse_unknown_groups(shard_set)
    groups = _numbered(pairs)
    present = np.zeros((max(groups, default=-1) + 1, len(manifest.classes)), bool)
    of_source = dict(zip(sources, groups, strict=True))
    for split, shard in _shards(shard_set):
        index = shard_set.index(split, shard)
        for number in np.unique(index["source"]).tolist():
            present[of_source[split, number]] |= (index["counts"][index["source"] == number] > 0).any(axis=0)
    images = np.bincount(groups, minlength=len(present))
    if len(present) < count:
        raise UserError(
            f"{shard_set.folder}: {count} folds of {len(present)} labeled images (or groups of them), but a fold needs "
            f"at least one; lower --folds to at most {len(present)}, or make a set with fewer test images"
        )
    fold_of_group = _dealt(present, images, count, seed)
    return Partition(
        tuple(sources),
        tuple(pairs),
        fold_of_group[groups],
        np.asarray(groups, np.int64),
        present.sum(axis=0),
        tuple(
            tuple(fold for fold in range(1, count + 1) if not present[fold_of_group == fold, label].any())
            for label in range(present.shape[1])
        ),
    )


def _dealt(present: NDArray[np.bool_], images: Int64, count: int, seed: int) -> Int64:
    """The fold of each group, (G,) from 1; `present` (G, K): the group has the class; `images` (G,) in each group."""
    shuffled = generator(seed, Purpose.FOLDS).permutation(len(present))
    held = np.zeros(count, np.int64)
    fold_of = np.zeros(len(present), np.int64)

    def deal(members: Iterable[int], already: Int64) -> None:
        for group in members:
            fold = int(np.lexsort((held, already))[0])
            fold_of[group] = fold + 1
            already[fold] += 1
            held[fold] += images[group]

    for label in np.argsort(present.sum(axis=0), kind="stable").tolist():
        with_class = [group for group in shuffled.tolist() if present[group, label]]
        already = np.bincount([fold_of[group] - 1 for group in with_class if fold_of[group]], minlength=count)
        deal([group for group in with_class if not fold_of[group]], already.astype(np.int64))
    deal([group for group in shuffled.tolist() if not fold_of[group]], np.zeros(count, np.int64))  # nothing labeled
    return fold_of


def _numbered(pairs: Sequence[SourcePair]) -> list[int]:
    """The group of each image as a number; images that share a group or their content are in one."""
    root: dict[str, str] = {}

    def find(key: str) -> str:
        while root.setdefault(key, key) != key:
            key = root[key]
        return key

    for pair in pairs:
        own = find(_group(pair))
        if pair.content:
            root[find(f"content {pair.content}")] = own
    numbers: dict[str, int] = defaultdict(lambda: len(numbers))
    return [numbers[find(_group(pair))] for pair in pairs]


def _group(pair: SourcePair) -> str:
    return f"group {pair.group}" if pair.group else f"file {re.sub(r'#page=[0-9]+$', '', pair.image)}"


def _refuse_unknown_groups(shard_set: ShardSet) -> None:
    manifest = shard_set.manifest
    if manifest.format_version < GROUPS_SINCE and manifest.recipe.get("split", {}).get("group"):
        raise UserError(
            f"{shard_set.folder}: made with --split.group by an earlier segdist, which didn't record the groups; "
            "run the same `segdist make-shards` with --overwrite"
        )


def _shards(shard_set: ShardSet) -> list[tuple[str, int]]:
    return [(split, shard) for split in SPLITS for shard in range(len(shard_set.sizes(split)))]


@dataclass(frozen=True)
class _Range:
    """Consecutive records of one shard."""

    split: str
    shard: int
    first: int
    count: int


class FoldSet:
    """A shard set without a fold's images: all others form the training split, and the validation split is empty.

    Each record range appears as a shard. Statistics come from the remaining records, so no information about held-out
    images reaches the model.
    """

    def __init__(self, shard_set: ShardSet, fold: Fold) -> None:
        """Raises UserError: see `divide`; a damaged shard; no patch is left to train on."""
        self.shard_set, self.fold = shard_set, fold
        self.layout = shard_set.layout
        held_out = divide(shard_set, fold.count, fold.seed).held_out(fold.number)
        self._ranges = [
            part for split, shard in _shards(shard_set) for part in _kept(shard_set, split, shard, held_out)
        ]
        if not self._ranges:
            raise UserError(f"{shard_set.folder}: without fold {fold.name}, no patch is left to train on")
        self._shard = np.array([part.shard for part in self._ranges])
        self._first = np.array([part.first for part in self._ranges])
        self._validation = np.array([part.split == "val" for part in self._ranges])
        self.manifest = self._manifest()

    def sizes(self, split: str) -> list[int]:
        """Records per range; none for validation."""
        return [part.count for part in self._ranges] if split == "train" else []

    def gather(self, split: str, shard: Int64, record: Int64, rows: NDArray[np.uint8]) -> None:
        """As `ShardSet.gather`, with ranges in place of shards."""
        validation = self._validation[shard]
        for own_split, here in (("train", ~validation), ("val", validation)):
            if here.all():
                self.shard_set.gather(own_split, self._shard[shard], self._first[shard] + record, rows)
            elif here.any():
                some = shard[here]
                part = np.empty((len(some), rows.shape[1]), np.uint8)
                self.shard_set.gather(own_split, self._shard[some], self._first[some] + record[here], part)
                rows[here] = part

    def name(self, split: str, shard: int, record: int) -> str:
        """As `ShardSet.name`."""
        part = self._ranges[shard]
        return self.shard_set.name(part.split, part.shard, part.first + record)

    def _manifest(self) -> Manifest:
        """The set's manifest with the ranges as shards, and the statistics of their records."""
        manifest = self.shard_set.manifest
        infos = {split: manifest.of_split(split) for split in SPLITS}
        counts = np.zeros(len(manifest.classes), np.int64)
        for part in self._ranges:
            index = self.shard_set.index(part.split, part.shard)
            counts += index["counts"][part.first : part.first + part.count].sum(axis=0, dtype=np.int64)
        pixels = sum(self.sizes("train")) * manifest.patch**2
        mean, std = combined_statistics(*self._sums(), pixels)
        return replace(
            manifest,
            shards=tuple(
                replace(infos[part.split][part.shard], split="train", samples=part.count) for part in self._ranges
            ),
            mean=mean,
            std=std,
            pixels=tuple(counts.tolist()),
            ignored_pixels=pixels - int(counts.sum()),
        )

    def _sums(self) -> tuple[list[int], list[int]]:
        """Per channel, the exact sums of all values and of their squares."""
        channels = self.layout.channels
        sums, squares = [0] * channels, [0] * channels
        for number, part in enumerate(self._ranges):
            for start in range(0, part.count, ROWS_AT_ONCE):
                record = np.arange(start, min(start + ROWS_AT_ONCE, part.count))
                rows = np.empty((len(record), self.layout.stride), np.uint8)
                self.gather("train", np.full(len(record), number), record, rows)
                for channel, values in enumerate(np.moveaxis(self.layout.images(rows), 1, 0)):
                    sums[channel] += int(values.sum(dtype=np.uint64))
                    squares[channel] += int(np.square(values, dtype=np.uint64).sum())
        return sums, squares


def _kept(shard_set: ShardSet, split: str, shard: int, held_out: set[tuple[str, int]]) -> list[_Range]:
    """The runs of records in a shard whose images are not held out."""
    sources: NDArray[np.int32] = shard_set.index(split, shard)["source"]
    left_out = np.array([number for own, number in held_out if own == split], np.int64)
    kept = np.concatenate(([False], ~np.isin(sources, left_out), [False]))
    edges = np.flatnonzero(np.diff(kept.astype(np.int8))).reshape(-1, 2).tolist()
    return [_Range(split, shard, first, end - first) for first, end in edges]
