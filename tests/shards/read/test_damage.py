"""Damage to a set is found, and named, before samples are used."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from segdist.core.errors import UserError
from shards.read.batches import TrainBatches
from shards.read.order import SampleOrder
from shards.read.reader import Check, ShardSet
from shards.read.verify import verify
from shards.records import BLOCK

Damage = Callable[[Path], None]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-700])


def flip_byte(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def read_all(folder: Path, check: Check) -> None:
    shard_set = ShardSet(folder, check=check)
    for _ in TrainBatches(shard_set, SampleOrder(shard_set.sizes("train"), 4, 0)).batches(0):
        pass


@pytest.mark.parametrize("damage", [truncate, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_truncated_or_missing_shard_is_named_when_the_set_is_opened(
    fresh_set: Callable[..., Path], damage: Damage
) -> None:
    folder = fresh_set()
    damage(folder / "train-00003.tar")
    with pytest.raises(UserError, match=r"train-00003\.tar"):
        ShardSet(folder)


def test_a_missing_index_is_named_when_the_set_is_opened(fresh_set: Callable[..., Path]) -> None:
    folder = fresh_set()
    (folder / "val-00000.index.npy").unlink()
    with pytest.raises(UserError, match=r"val-00000\.index\.npy: missing"):
        ShardSet(folder)


def test_a_swapped_file_of_the_same_size_is_found_before_its_samples_are_used(fresh_set: Callable[..., Path]) -> None:
    folder = fresh_set()
    tar = folder / "train-00001.tar"
    tar.write_bytes(np.random.default_rng(0).bytes(tar.stat().st_size))
    with pytest.raises(UserError, match=r"train-00001\.tar record .*damaged header"):
        read_all(folder, "sizes")


@pytest.mark.parametrize("check", ["shards", "records"])
def test_a_flipped_bit_in_the_pixels_is_found_while_reading_if_requested(
    fresh_set: Callable[..., Path], check: Check
) -> None:
    folder = fresh_set()
    flip_byte(folder / "train-00002.tar", 3 * BLOCK)
    with pytest.raises(UserError, match=r"train-00002\.tar.*wrong checksum"):
        read_all(folder, check)


@pytest.mark.parametrize("check", ["sizes", "shards", "records"])
def test_a_damaged_png_record_is_named(fresh_set: Callable[..., Path], check: Check) -> None:
    folder = fresh_set(encoding="png")
    flip_byte(folder / "train-00000.tar", BLOCK + 40)
    with pytest.raises(UserError, match=r"train-00000\.tar"):
        read_all(folder, check)


def test_a_damaged_index_is_named(fresh_set: Callable[..., Path]) -> None:
    folder = fresh_set()
    flip_byte(folder / "train-00000.index.npy", -3)
    with pytest.raises(UserError, match=r"train-00000\.index\.npy: damaged"):
        read_all(folder, "records")


def test_an_undamaged_set_verifies(small_set: Path, small_png_set: Path) -> None:
    assert verify(small_set, quiet=True) == []
    assert verify(small_png_set, quiet=True) == []


def test_verify_finds_any_flipped_bit(fresh_set: Callable[..., Path]) -> None:
    folder = fresh_set()
    tar = folder / "val-00000.tar"
    sound = tar.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(sound), 25).tolist():
        flip_byte(tar, place)
        problems = verify(folder, quiet=True)
        assert problems
        assert all(str(tar) in problem for problem in problems)
        tar.write_bytes(sound)
    assert verify(folder, quiet=True) == []


def test_verify_names_the_record_and_its_source(fresh_set: Callable[..., Path]) -> None:
    folder = fresh_set()
    flip_byte(folder / "train-00004.tar", 3 * BLOCK)
    problems = verify(folder, quiet=True)
    assert problems[0].endswith("train-00004.tar: wrong checksum")
    assert "train-00004.tar record 0 (from source/train/images/" in problems[1]


def test_verify_continues_after_the_first_problem(fresh_set: Callable[..., Path]) -> None:
    folder = fresh_set()
    (folder / "train-00000.tar").unlink()
    truncate(folder / "train-00001.tar")
    flip_byte(folder / "train-00002.index.npy", -1)
    problems = "\n".join(verify(folder, quiet=True))
    assert all(name in problems for name in ("train-00000.tar", "train-00001.tar", "train-00002.index.npy"))
