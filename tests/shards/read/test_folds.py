"""Folds hold out whole groups of images, spread the classes evenly, and are views of one set."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segdist.core.errors import UserError
from segdist.core.fold import Fold, parse_fold
from shards.build.build import make_shards
from shards.build.config import SplitConfig
from shards.manifest import MANIFEST, combined_statistics
from shards.read.folds import FoldSet, Partition, divide
from shards.read.reader import ShardSet
from tests.support.sets import add, labels, noise, own_config, tiny_set


def own_set(folder: Path, group: str = "", **changes: object) -> ShardSet:
    config = own_config(folder, split=SplitConfig(validation=0.2, test=0.0, group=group), **changes)
    make_shards(config, quiet=True)
    return ShardSet(config.folder)


def names(partition: Partition, fold: int) -> set[str]:
    pairs = zip(partition.pairs, partition.folds.tolist(), strict=True)
    return {Path(pair.image).stem for pair, own in pairs if own == fold}


def records(source: ShardSet | FoldSet, split: str) -> Counter[bytes]:
    sizes = source.sizes(split)
    shard = np.repeat(np.arange(len(sizes)), sizes)
    record = np.concatenate([np.arange(size) for size in sizes] or [np.zeros(0, np.int64)])
    rows = np.empty((len(shard), source.layout.stride), np.uint8)
    source.gather(split, shard, record, rows)
    return Counter(row.tobytes() for row in rows)


def test_every_labeled_image_is_held_out_once_and_test_images_never(tmp_path: Path) -> None:
    shard_set = ShardSet(tiny_set(tmp_path))
    partition = divide(shard_set, 4, seed=0)
    held = [partition.held_out(fold) for fold in range(1, 5)]
    assert Counter(source for part in held for source in part) == Counter(partition.sources)
    assert sorted(len(part) for part in held) == [2, 2, 3, 3]
    assert {split for split, _ in partition.sources} == {"train", "val"}
    assert len(partition.sources) == 10


def test_a_fold_trains_on_every_record_of_the_other_images(tmp_path: Path) -> None:
    shard_set = ShardSet(tiny_set(tmp_path))
    everything = records(shard_set, "train") + records(shard_set, "val")
    left_out: Counter[bytes] = Counter()
    for number in range(1, 4):
        fold_set = FoldSet(shard_set, Fold(number, 3, seed=0))
        kept = records(fold_set, "train")
        assert kept <= everything
        left_out += everything - kept
        assert fold_set.sizes("val") == []
        assert fold_set.manifest.samples("train") == kept.total()
        assert fold_set.manifest.samples("val") == 0
        held_out = divide(shard_set, 3, seed=0).held_out(number)
        shown = {fold_set.name("train", shard, 0) for shard in range(len(fold_set.sizes("train")))}
        for split, source in held_out:
            assert not any(shard_set.manifest.sources[split][source].image in name for name in shown)
    assert left_out == everything


def test_statistics_come_from_the_training_images_only(tmp_path: Path) -> None:
    shard_set = ShardSet(tiny_set(tmp_path))
    fold_set = FoldSet(shard_set, Fold(2, 3, seed=0))
    rows = np.concatenate([np.frombuffer(row, np.uint8)[None] for row in records(fold_set, "train").elements()])
    images, masks = shard_set.layout.images(rows).astype(np.int64), shard_set.layout.masks(rows)
    mean, std = combined_statistics([int(images.sum())], [int((images**2).sum())], images.size)
    assert (fold_set.manifest.mean, fold_set.manifest.std) == (mean, std)
    assert fold_set.manifest.mean != shard_set.manifest.mean
    assert fold_set.manifest.pixels == tuple(np.bincount(masks.ravel(), minlength=3)[:3].tolist())


def test_the_same_seed_gives_the_same_folds_and_another_seed_different_ones(tmp_path: Path) -> None:
    shard_set = ShardSet(tiny_set(tmp_path))
    first = [divide(shard_set, 5, seed).folds.tolist() for seed in (0, 0, 1)]
    assert first[0] == first[1] != first[2]


def test_images_in_one_group_are_in_one_fold(tmp_path: Path) -> None:
    for number in range(12):
        add(tmp_path, f"patient{number // 3}-{number}.png", noise(number), labels())
    partition = divide(own_set(tmp_path, group="(patient[0-9])"), 4, seed=0)
    for fold in range(1, 5):
        patients = Counter(name.partition("-")[0] for name in names(partition, fold))
        assert list(patients.values()) == [3]


def test_copies_of_an_image_are_in_the_same_fold(tmp_path: Path) -> None:
    for number in range(8):
        add(tmp_path, f"{number}.png", noise(number // 2), labels())
    make_shards(replace(own_config(tmp_path), split=SplitConfig(validation=0.0, test=0.0)), quiet=True)
    partition = divide(ShardSet(tmp_path / "data" / "own"), 4, seed=0)
    assert {frozenset(names(partition, fold)) for fold in range(1, 5)} == {
        frozenset({str(number), str(number + 1)}) for number in range(0, 8, 2)
    }


def test_a_rare_class_is_spread_over_the_folds_and_its_absence_reported(tmp_path: Path) -> None:
    for number in range(20):
        add(tmp_path, f"{number}.png", noise(number), labels() if number < 4 else np.zeros((40, 30), np.uint8))
    shard_set = own_set(tmp_path)
    for seed in range(5):
        partition = divide(shard_set, 4, seed)
        with_class = [sum(int(name) < 4 for name in names(partition, fold)) for fold in range(1, 5)]
        assert with_class == [1, 1, 1, 1]
        assert [len(names(partition, fold)) for fold in range(1, 5)] == [5, 5, 5, 5]
        assert partition.missing == ((), ())
    partition = divide(shard_set, 5, 0)
    assert partition.class_groups.tolist() == [20, 4]
    assert [len(missing) for missing in partition.missing] == [0, 1]


def test_more_folds_than_groups_are_refused(tmp_path: Path) -> None:
    for number in range(6):
        add(tmp_path, f"{number % 2}-{number}.png", noise(number), labels())
    with pytest.raises(UserError, match=r"3 folds of 2 labeled images .* lower --folds to at most 2"):
        divide(own_set(tmp_path, group="^(.)-"), 3, seed=0)


def test_a_grouped_set_from_before_groups_were_recorded_is_refused(tmp_path: Path) -> None:
    for number in range(6):
        add(tmp_path, f"{number % 3}-{number}.png", noise(number), labels())
    folder = own_set(tmp_path, group="^(.)-").folder
    manifest = json.loads((folder / MANIFEST).read_text())
    for pairs in manifest["sources"].values():
        for pair in pairs:
            del pair["group"]
    (folder / MANIFEST).write_text(json.dumps(manifest | {"format_version": 2}))
    with pytest.raises(UserError, match="which didn't record the groups"):
        divide(ShardSet(folder), 2, seed=0)


@pytest.mark.parametrize("text", ["", "1", "0/5", "6/5", "1/1", "1/2/3", "a/b", "-1/3", "1/1001", "9" * 5000 + "/3"])
def test_a_fold_is_written_k_of_n(text: str) -> None:
    with pytest.raises(UserError, match="write k/n"):
        parse_fold(text, 0)
    assert parse_fold("2/5", 7) == Fold(2, 5, 7)
