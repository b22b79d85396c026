"""Reading batches from a shard set."""

import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shards.read.batches
from segdist.core.errors import UserError
from shards.images.opening import open_image
from shards.manifest import Manifest, ShardInfo, read_manifest
from shards.read.batches import Batch, TrainBatches, ValidationBatches
from shards.read.order import SampleOrder
from shards.read.reader import ShardSet
from shards.records import NpyLayout


def copies(batches: object) -> list[tuple[np.ndarray, np.ndarray, list[int], int]]:
    """Copies of the batches' contents, since their buffers are reused."""
    return [
        (batch.images.numpy().copy(), batch.masks.numpy().copy(), batch.flips.tolist(), batch.step)
        for batch in batches  # type: ignore[attr-defined]
    ]


def assert_same(one: list, other: list) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert np.array_equal(left[0], right[0])
        assert np.array_equal(left[1], right[1])
        assert left[2:] == right[2:]


def test_a_patch_is_the_window_of_its_source_image(small_set: Path) -> None:
    shard_set = ShardSet(small_set)
    order = SampleOrder(shard_set.sizes("train"), 5, 0)
    for batch in TrainBatches(shard_set, order).batches(0, order.steps_per_epoch - 3):
        for place in range(5):
            shard, record = int(batch.samples.shard[place]), int(batch.samples.record[place])
            entry = shard_set.index("train", shard)[record]
            pair = shard_set.manifest.sources["train"][entry["source"]]
            y, x = int(entry["y"]), int(entry["x"])
            with open_image(small_set / pair.image) as image:
                window = image.read(y, y + 32, x, x + 32)
            assert np.array_equal(batch.images[place, 0].numpy(), window[:, :, 0])
            assert entry["counts"].tolist() == np.bincount(batch.masks[place].numpy().ravel(), minlength=3).tolist()


@pytest.mark.parametrize("prefetch", [1, 4, 6])
def test_prefetching_gives_the_same_batches(small_set: Path, prefetch: int) -> None:
    shard_set = ShardSet(small_set)
    order = SampleOrder(shard_set.sizes("train"), 16, 0)
    plain = copies(TrainBatches(shard_set, order, prefetch=0).batches(1))
    ahead = copies(TrainBatches(shard_set, order, prefetch=prefetch).batches(1))
    assert len(plain) == order.steps_per_epoch
    assert_same(plain, ahead)


@pytest.mark.parametrize("world", [2, 3, 4, 8, 16])
def test_ranks_together_hold_the_global_batch_in_its_order(small_set: Path, world: int) -> None:
    shard_set = ShardSet(small_set)
    order = SampleOrder(shard_set.sizes("train"), 16, 0)
    whole = copies(TrainBatches(shard_set, order).batches(0))
    ranks = [copies(TrainBatches(shard_set, order, rank, world).batches(0)) for rank in range(world)]
    assert {len(batches) for batches in ranks} == {order.steps_per_epoch}
    for step, (images, masks, flips, _) in enumerate(whole):
        assert np.array_equal(np.concatenate([batches[step][0] for batches in ranks]), images)
        assert np.array_equal(np.concatenate([batches[step][1] for batches in ranks]), masks)
        assert [flip for batches in ranks for flip in batches[step][2]] == flips


def test_starting_at_a_later_step_gives_the_rest_of_the_epoch(small_set: Path) -> None:
    shard_set = ShardSet(small_set)
    batches = TrainBatches(shard_set, SampleOrder(shard_set.sizes("train"), 7, 3))
    assert_same(copies(batches.batches(2))[5:], copies(batches.batches(2, 5)))


def test_png_members_give_the_same_samples(small_set: Path, small_png_set: Path) -> None:
    sets = [ShardSet(small_set), ShardSet(small_png_set)]
    assert sets[0].sizes("train") == sets[1].sizes("train")
    one, other = (copies(TrainBatches(s, SampleOrder(s.sizes("train"), 16, 0)).batches(0)) for s in sets)
    assert_same(one, other)
    assert sets[0].manifest.mean == sets[1].manifest.mean


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("batch", [1, 4, 5, 1000])
def test_validation_shows_every_patch_once_in_batches_independent_of_the_ranks(
    small_set: Path, world: int, batch: int
) -> None:
    shard_set = ShardSet(small_set)
    whole = copies(ValidationBatches(shard_set, batch))
    ranks = [ValidationBatches(shard_set, batch, rank, world) for rank in range(world)]
    parts = sorted((item for rank in ranks for item in copies(rank)), key=lambda item: item[3])
    assert_same(whole, parts)
    assert sum(len(item[0]) for item in whole) == shard_set.manifest.samples("val")
    assert [len(rank) for rank in ranks] == [len(list(rank)) for rank in ranks]
    assert all(len(item[0]) == batch for item in whole[:-1])


class NumberedSet:
    """An in-memory set whose records hold their own shard and record number; reads no file."""

    def __init__(self, sizes: list[int], manifest: Manifest) -> None:
        self._sizes = {"train": sizes, "val": sizes}
        self.layout = NpyLayout(8, 1, "uint8")
        self.manifest = replace(
            manifest,
            shards=tuple(
                ShardInfo(f"val-{number:05}.tar", "val", size, 0, "", "") for number, size in enumerate(sizes)
            ),
        )

    def sizes(self, split: str) -> list[int]:
        return self._sizes[split]

    def gather(self, split: str, shard: np.ndarray, record: np.ndarray, rows: np.ndarray) -> None:
        self.layout.images(rows)[:, 0, 0, 0] = shard
        self.layout.images(rows)[:, 0, 0, 1] = record
        self.layout.masks(rows)[:, 0, 0] = record

    def name(self, split: str, shard: int, record: int) -> str:
        return f"{split} {shard} {record}"


def delivered(batches: Iterable[Batch]) -> list[list[tuple[int, ...]]]:
    """Per batch: the step, and (shard, record, flip) per slot as read from the buffers."""
    found = []
    for batch in batches:
        assert torch.equal(batch.images[:, 0, 0, 1], batch.masks[:, 0, 0])
        pixels = batch.images[:, 0, 0, :2].tolist()
        found.append([(batch.step,), *((*pair, flip) for pair, flip in zip(pixels, batch.flips.tolist(), strict=True))])
    return found


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=10).filter(lambda sizes: sum(sizes) >= 10),
    batch=st.integers(1, 40),
    seed=st.integers(0, 10**6),
    world=st.sampled_from([1, 2, 3, 4, 8, 16]),
    prefetch=st.sampled_from([0, 1, 2, 5, 9]),
    group_bytes=st.sampled_from([1, 5_000, 100_000]),
    first=st.integers(0, 200),
)
def test_global_batches_do_not_depend_on_ranks_and_prefetching(
    small_set: Path,
    sizes: list[int],
    batch: int,
    seed: int,
    world: int,
    prefetch: int,
    group_bytes: int,
    first: int,
) -> None:
    shard_set = NumberedSet(sizes, read_manifest(small_set))
    order = SampleOrder(sizes, max(batch, world), seed)
    first %= order.steps_per_epoch
    steps = range(first, order.steps_per_epoch)
    whole = order.samples(2, steps, range(order.global_batch))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards.read.batches, "GROUP_BYTES", group_bytes)
        ranks = [
            delivered(TrainBatches(shard_set, order, rank, world, prefetch=prefetch).batches(2, first))
            for rank in range(world)
        ]
        validation = [
            part
            for rank in range(world)
            for part in delivered(ValidationBatches(shard_set, batch, rank, world, prefetch=prefetch))
        ]
    assert {len(batches) for batches in ranks} == {len(steps)}
    for place, step in enumerate(steps):
        assert {batches[place][0] for batches in ranks} == {(step,)}
        found = [sample for batches in ranks for sample in batches[place][1:]]
        assert found == list(zip(whole.shard[place], whole.record[place], whole.flip[place], strict=True))
    everything = [(shard, record, 0) for shard, size in enumerate(sizes) for record in range(size)]
    validation.sort(key=lambda part: part[0])
    assert [part[0] for part in validation] == [(number,) for number in range(-(-len(everything) // batch))]
    assert [sample for part in validation for sample in part[1:]] == everything
    assert all(len(part) == batch + 1 for part in validation[:-1])


def test_leaving_early_stops_the_threads(small_set: Path) -> None:
    shard_set = ShardSet(small_set)
    batches = TrainBatches(shard_set, SampleOrder(shard_set.sizes("train"), 4, 0), prefetch=3)
    stream = batches.batches(0)
    next(stream)
    assert any(thread.name.startswith("shards") for thread in threading.enumerate())
    stream.close()
    assert not any(thread.name.startswith("shards") for thread in threading.enumerate())


def test_an_error_in_a_thread_reaches_the_consumer(small_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards.read.batches, "GROUP_BYTES", 1)
    shard_set = ShardSet(small_set)
    calls = []

    def fail_later(*_: object) -> None:
        calls.append(1)
        if len(calls) > 1:
            raise UserError("shard gone")

    monkeypatch.setattr(shard_set, "gather", fail_later)
    batches = TrainBatches(shard_set, SampleOrder(shard_set.sizes("train"), 4, 0), prefetch=2)
    steps = []
    with pytest.raises(UserError, match="shard gone"):
        steps += [batch.step for batch in batches.batches(0)]
    assert not any(thread.name.startswith("shards") for thread in threading.enumerate())


def test_concurrent_streams_do_not_share_buffers(small_set: Path) -> None:
    shard_set = ShardSet(small_set)
    batches = TrainBatches(shard_set, SampleOrder(shard_set.sizes("train"), 4, 0), prefetch=2)
    expected = copies(batches.batches(0)), copies(batches.batches(1))
    both = zip(batches.batches(0), batches.batches(1), strict=True)
    for step, (one, other) in enumerate(both):
        assert np.array_equal(one.images.numpy(), expected[0][step][0])
        assert np.array_equal(other.images.numpy(), expected[1][step][0])


@pytest.mark.parametrize("group_bytes", [1, 50_000])
def test_buffers_are_reused(small_set: Path, monkeypatch: pytest.MonkeyPatch, group_bytes: int) -> None:
    monkeypatch.setattr(shards.read.batches, "GROUP_BYTES", group_bytes)
    shard_set = ShardSet(small_set)
    batches = TrainBatches(shard_set, SampleOrder(shard_set.sizes("train"), 4, 0), prefetch=2)
    places = {batch.images.data_ptr() for _ in range(2) for batch in batches.batches(0)}
    assert len(places) < batches.order.steps_per_epoch
    assert {batch.images.data_ptr() for batch in batches.batches(1)} <= places


def test_names_tell_where_samples_come_from(small_set: Path) -> None:
    shard_set = ShardSet(small_set)
    batch: Batch = next(iter(ValidationBatches(shard_set, 3)))
    assert len(batch.names()) == 3
    assert "val-00000.tar record 0 (from source/train/images/00" in batch.names()[0]


def test_batches_have_the_stored_types(small_set: Path) -> None:
    shard_set = ShardSet(small_set)
    batch = next(TrainBatches(shard_set, SampleOrder(shard_set.sizes("train"), 4, 0)).batches(0))
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (4, 1, 32, 32)
    assert batch.rows.is_contiguous()
    assert batch.masks.dtype == batch.flips.dtype == torch.uint8


class Copy:
    """Simulates the event of a copy to a slow device by reading the buffer only when waited for."""

    def __init__(self, batch: Batch) -> None:
        self.rows, self.expected, self.waited = batch.rows, batch.rows.clone(), False

    def synchronize(self) -> None:
        assert torch.equal(self.rows, self.expected)
        self.waited = True


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_buffer_is_not_refilled_while_the_device_reads_it(
    small_set: Path, monkeypatch: pytest.MonkeyPatch, prefetch: int
) -> None:
    monkeypatch.setattr(shards.read.batches, "GROUP_BYTES", 50_000)
    shard_set = ShardSet(small_set)
    copies = []
    for batch in TrainBatches(shard_set, SampleOrder(shard_set.sizes("train"), 4, 0), prefetch=prefetch).batches(0):
        copies.append(Copy(batch))
        batch.copies.append(copies[-1])
    assert sum(copy.waited for copy in copies) > len(copies) / 2


@pytest.mark.gpu
def test_pinned_buffers_hold_the_same_batches(small_set: Path) -> None:
    shard_set = ShardSet(small_set)
    order = SampleOrder(shard_set.sizes("train"), 8, 0)
    pinned = TrainBatches(shard_set, order, pin=True)
    assert next(pinned.batches(0)).rows.is_pinned()
    assert_same(copies(TrainBatches(shard_set, order).batches(0)), copies(pinned.batches(0)))
