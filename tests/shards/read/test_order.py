"""The order of samples is a pure function of (seed, epoch, step, slot)."""

import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdist.core.errors import UserError
from shards.read.order import SampleOrder, Samples, slots_of_rank

shard_sizes = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) >= 20)
batches = st.integers(1, 40)


def triples(samples: Samples) -> list[tuple[int, int, int]]:
    """(shard, record, flip) of all samples, in reading order."""
    return list(zip(samples.shard.ravel(), samples.record.ravel(), samples.flip.ravel(), strict=True))


@settings(deadline=None, max_examples=60)
@given(sizes=shard_sizes, batch=batches, seed=st.integers(0, 10**6), epoch=st.integers(0, 5), window=st.integers(1, 50))
def test_an_epoch_shows_every_patch_under_every_flip_except_less_than_a_batch(
    sizes: list[int], batch: int, seed: int, epoch: int, window: int
) -> None:
    order = SampleOrder(sizes, batch, seed, window=window)
    seen = triples(order.samples(epoch, range(order.steps_per_epoch), range(batch)))
    pairs = {(shard, record, flip) for shard, size in enumerate(sizes) for record in range(size) for flip in range(4)}
    assert len(seen) == len(set(seen)) == len(pairs) - len(pairs) % batch
    assert set(seen) <= pairs


@settings(deadline=None, max_examples=30)
@given(sizes=shard_sizes, batch=batches, seed=st.integers(0, 10**6))
def test_without_flips_an_epoch_shows_every_patch_once(sizes: list[int], batch: int, seed: int) -> None:
    if sum(sizes) < batch:
        return
    order = SampleOrder(sizes, batch, seed, flips=False)
    seen = triples(order.samples(0, range(order.steps_per_epoch), range(batch)))
    assert len(set(seen)) == sum(sizes) - sum(sizes) % batch
    assert {flip for _, _, flip in seen} == {0}


@settings(deadline=None, max_examples=40)
@given(sizes=shard_sizes, batch=batches, seed=st.integers(0, 10**6), world=st.sampled_from([1, 2, 3, 4, 8, 16]))
def test_any_number_of_ranks_sees_the_same_global_batches(sizes: list[int], batch: int, seed: int, world: int) -> None:
    if world > batch:
        return
    order = SampleOrder(sizes, batch, seed)
    steps = range(order.steps_per_epoch)
    whole = order.samples(3, steps, range(batch))
    parts = [
        SampleOrder(sizes, batch, seed).samples(3, steps, slots_of_rank(batch, rank, world)) for rank in range(world)
    ]
    for name in ("shard", "record", "flip"):
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts], axis=1), getattr(whole, name))


@settings(deadline=None, max_examples=40)
@given(sizes=shard_sizes, batch=batches, first=st.integers(0, 100))
def test_starting_at_any_step_continues_the_same_sequence(sizes: list[int], batch: int, first: int) -> None:
    order = SampleOrder(sizes, batch, 1)
    first %= order.steps_per_epoch
    whole = order.samples(2, range(order.steps_per_epoch), range(batch))
    rest = SampleOrder(sizes, batch, 1).samples(2, range(first, order.steps_per_epoch), range(batch))
    assert np.array_equal(rest.record, whole.record[first:])
    assert np.array_equal(rest.shard, whole.shard[first:])


@given(batch=st.integers(1, 500), world=st.integers(1, 64))
def test_ranks_share_the_slots_evenly_and_in_order(batch: int, world: int) -> None:
    if world > batch:
        with pytest.raises(UserError, match="ranks share a global batch"):
            slots_of_rank(batch, 0, world)
        return
    parts = [slots_of_rank(batch, rank, world) for rank in range(world)]
    assert [slot for part in parts for slot in part] == list(range(batch))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_each_pass_shows_each_patch_under_a_different_flip() -> None:
    order = SampleOrder([50, 30], 1, 0)
    flips: dict[tuple[int, int], set[int]] = {}
    for shard, record, flip in triples(order.samples(0, range(order.steps_per_epoch), range(1))):
        flips.setdefault((shard, record), set()).add(flip)
    assert all(shown == {0, 1, 2, 3} for shown in flips.values())


def test_epochs_and_seeds_differ() -> None:
    def sequence(seed: int, epoch: int) -> list[tuple[int, int, int]]:
        order = SampleOrder([100, 60, 40], 16, seed)
        return triples(order.samples(epoch, range(order.steps_per_epoch), range(16)))

    first = sequence(0, 0)
    for other in (sequence(0, 1), sequence(1, 0)):
        same = sum(one == two for one, two in zip(first, other, strict=True))
        assert same < 0.05 * len(first)


def test_omitted_samples_differ_from_epoch_to_epoch() -> None:
    order = SampleOrder([7, 6], 16, 0)  # 52 pairs, 3 batches of 16, 4 left out
    pairs = {(shard, record, flip) for shard, size in enumerate((7, 6)) for record in range(size) for flip in range(4)}
    left_out = [pairs - set(triples(order.samples(epoch, range(3), range(16)))) for epoch in range(8)]
    assert all(len(each) == 4 for each in left_out)
    assert len(set.union(*left_out)) > 12


def test_epochs_cut_the_list_at_different_points() -> None:
    order = SampleOrder([101], 4, 0, flips=False, window=1)  # one shard and no windows, so only the rotation can differ
    starts = {tuple(order.samples(epoch, [0], range(4)).record[0].tolist()) for epoch in range(8)}
    assert len(starts) == 8


def test_fewer_pairs_than_a_batch_are_refused() -> None:
    with pytest.raises(UserError, match="lower --batch"):
        SampleOrder([3], 16, 0)


@pytest.mark.parametrize(
    ("shards", "patches", "per_image"),
    [(6, 300, 20), (64, 1000, 20), (400, 4000, 20)],
    ids=["demo: 1,800", "64,000", "1.6 million"],
)
def test_batches_mix_source_images_almost_like_a_full_shuffle(shards: int, patches: int, per_image: int) -> None:
    order = SampleOrder([patches] * shards, 16, 0)
    random = np.random.default_rng(0)
    total = shards * patches
    for batches in (1, 10, 100):
        distinct, ideal = [], []
        for first in np.linspace(0, order.steps_per_epoch - batches, 12).astype(int):
            samples = order.samples(0, range(first, first + batches), range(16))
            distinct.append(len(np.unique((samples.shard * patches + samples.record) // per_image)))
            shuffled = random.choice(total * 4, batches * 16, replace=False) % total
            ideal.append(len(np.unique(shuffled // per_image)))
        assert np.mean(distinct) >= 0.9 * np.mean(ideal), (batches, np.mean(distinct), np.mean(ideal))


def test_the_order_of_100_million_samples_takes_little_memory_and_can_start_anywhere() -> None:
    tracemalloc.start()
    order = SampleOrder([10_000] * 10_000, 1024, 0)
    last = order.steps_per_epoch - 1
    samples = order.samples(7, [0, last // 2, last], range(1024))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert samples.shard.shape == (3, 1024)
    assert peak < 8 << 20, f"{peak / 2**20:.1f} MB"
    assert sys.getsizeof(order.sizes) < 1 << 20


def test_reading_stays_local() -> None:
    """A slot reads from a window of a few shards at a time, not from the whole set."""
    order = SampleOrder([4000] * 1000, 16, 0)
    samples = order.samples(0, range(4000), range(1))
    assert len(np.unique(samples.shard)) <= 6
