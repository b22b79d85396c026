"""Weighted mixing of several shard sets."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdist.core.errors import UserError
from shards.read.batches import TrainBatches
from shards.read.mixing import BLOCK, MixedOrder, MixedSet, quotas
from shards.read.order import slots_of_rank
from shards.read.reader import ShardSet

SIZES = ([30, 20], [7], [400, 1, 99])


def test_the_weights_hold_exactly_in_every_block() -> None:
    order = MixedOrder(SIZES, (5, 1, 4), 16, 0, steps_per_epoch=200)
    chosen, _ = order.choose(np.arange(3 * BLOCK))
    for block in chosen.reshape(3, BLOCK):
        assert np.bincount(block).tolist() == [500, 100, 400]


@given(weights=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=9))
def test_quotas_add_up_and_include_every_set(weights: list[float]) -> None:
    shares = quotas(weights)
    assert shares.sum() == BLOCK
    assert shares.min() >= 1


def test_each_set_goes_through_its_own_epochs_without_repeating() -> None:
    order = MixedOrder(SIZES, (1, 1, 1), 16, 0, steps_per_epoch=BLOCK // 8)
    samples = order.samples(0, range(order.steps_per_epoch), range(16))
    chosen, count = order.choose(np.arange(2 * BLOCK).reshape(-1, 16))
    small = chosen == 1  # one shard of 7 patches: 28 pairs with their flips
    by_count = np.argsort(count[small])
    shown = list(zip(samples.record[small][by_count].tolist(), samples.flip[small][by_count].tolist(), strict=True))
    epochs = [shown[start : start + 28] for start in range(0, len(shown) - 28, 28)]
    assert all(len(set(epoch)) == 28 for epoch in epochs)
    assert epochs[0] != epochs[1]


@settings(deadline=None, max_examples=25)
@given(world=st.integers(1, 16), epoch=st.integers(0, 4), first=st.integers(0, 60))
def test_ranks_and_resuming_do_not_change_the_mix(world: int, epoch: int, first: int) -> None:
    whole = MixedOrder(SIZES, (3, 2, 1), 16, 9, steps_per_epoch=64).samples(epoch, range(64), range(16))
    for rank in range(world):
        slots = slots_of_rank(16, rank, world)
        part = MixedOrder(SIZES, (3, 2, 1), 16, 9, steps_per_epoch=64).samples(epoch, range(first, 64), slots)
        for name in ("shard", "record", "flip"):
            assert np.array_equal(getattr(part, name), getattr(whole, name)[first:, slots.start : slots.stop])


def test_batches_come_from_all_sets(small_set: Path) -> None:
    both = MixedSet([ShardSet(small_set), ShardSet(small_set)])
    sizes = ShardSet(small_set).sizes("train")
    order = MixedOrder([sizes, sizes], (1, 3), 8, 0, steps_per_epoch=50)
    second = 0
    for batch in TrainBatches(both, order, prefetch=2).batches(0):
        from_second = batch.samples.shard >= len(sizes)
        second += int(from_second.sum())
        place = int(np.argmax(from_second))
        shard, record = int(batch.samples.shard[place]) % len(sizes), int(batch.samples.record[place])
        image, _ = both.sets[0].read("train", np.array([shard]), np.array([record]))
        assert np.array_equal(batch.images[place].numpy(), image[0])
    assert 0.7 < second / 400 < 0.8


def test_sets_of_different_kinds_are_refused(small_set: Path, small_png_set: Path) -> None:
    other = ShardSet(small_png_set)
    object.__setattr__(other.manifest, "patch", 64)
    with pytest.raises(UserError, match="can't be mixed: patch 32 and 64"):
        MixedSet([ShardSet(small_set), other])


def test_weights_must_fit_the_sets() -> None:
    with pytest.raises(UserError, match="give each one positive weight"):
        MixedOrder(SIZES, (1, 2), 16, 0, steps_per_epoch=10)
