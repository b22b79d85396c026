"""Train on several weighted shard sets together, as deterministically as on one.

The slots of all global batches form one endless sequence. Each BLOCK of it holds exactly every set's quota (its share
of the weights), shuffled by a keyed permutation. So the set that a slot draws from, and the number of samples drawn
from that set before, follow from the slot's position alone. That count walks through the set's own `SampleOrder`,
through the set's own epochs: a small set with a large weight repeats more often, each time in a different order.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from segdist.core.errors import UserError
from segdist.core.keyed import Purpose, hash64, permute
from shards.manifest import Manifest
from shards.read.order import WINDOW, Int64, SampleOrder, Samples
from shards.read.reader import ShardSet

BLOCK = 1000
"""Number of slots in which quotas are exact, so weights are accurate to 1/1000."""


class MixedOrder:
    """The training order over several sets; shards are numbered consecutively through the sets, as in `MixedSet`."""

    def __init__(
        self,
        shard_sizes: Sequence[Sequence[int]],
        weights: Sequence[float],
        global_batch: int,
        seed: int,
        steps_per_epoch: int,
        *,
        flips: bool = True,
        window: int = WINDOW,
    ) -> None:
        """`shard_sizes`: records per shard of each set; `weights`: shares of the samples, in any unit.

        Raises:
            UserError: weights that aren't positive, a wrong number of weights, an empty set.
        """
        if len(weights) != len(shard_sizes) or min(weights, default=0) <= 0 or not np.isfinite(sum(weights)):
            raise UserError(
                f"{len(shard_sizes)} shard sets with the weights {list(weights)}; give each one positive weight"
            )
        if global_batch < 1 or steps_per_epoch < 1:
            raise UserError(f"a global batch of {global_batch} and {steps_per_epoch} steps per epoch: at least 1 each")
        self.global_batch, self.seed, self.steps_per_epoch = global_batch, seed, steps_per_epoch
        self.quotas = quotas(weights)
        self._orders = []
        for number, sizes in enumerate(shard_sizes):
            pairs = sum(sizes) * (4 if flips else 1)
            own_seed = int(hash64(seed, Purpose.MIXED_SEED, number) >> np.uint64(1))
            # A set that fits one window is shuffled as a whole, and a single lane leaves out none of its pairs.
            lanes = global_batch if pairs > max(window, global_batch) else 1
            self._orders.append(SampleOrder(sizes, lanes, own_seed, flips=flips, window=window))
        self._first_shard = np.cumsum([0, *(len(sizes) for sizes in shard_sizes)])

    def samples(self, epoch: int, steps: Int64 | range | Sequence[int], slots: range) -> Samples:
        """The samples of `steps` at `slots` of the global batch, arrays of shape (steps, slots)."""
        step = epoch * self.steps_per_epoch + np.asarray(steps, np.int64)[:, None]
        chosen, count = self.choose(step * self.global_batch + np.asarray(slots, np.int64)[None, :])
        shard, record = np.empty_like(chosen), np.empty_like(chosen)
        flip = np.empty(chosen.shape, np.uint8)
        for number, order in enumerate(self._orders):
            own_step, lane = np.divmod(count, order.global_batch)
            own_epoch, own_step = np.divmod(own_step, order.steps_per_epoch)
            mine = chosen == number
            for each in np.unique(own_epoch[mine]).tolist():
                these = mine & (own_epoch == each)
                samples = order.at(each, own_step[these], lane[these])
                shard[these], record[these] = samples.shard + self._first_shard[number], samples.record
                flip[these] = samples.flip
        return Samples(shard, record, flip)

    def choose(self, place: Int64) -> tuple[Int64, Int64]:
        """The set that the slot at `place` draws from, and the number of samples drawn from that set before."""
        block, inside = np.divmod(place, BLOCK)
        moved = permute(inside, BLOCK, hash64(self.seed, Purpose.MIX, block)).astype(np.int64)
        ends = np.cumsum(self.quotas)
        chosen = np.searchsorted(ends, moved, side="right")
        return chosen, block * self.quotas[chosen] + moved - (ends - self.quotas)[chosen]


def quotas(weights: Sequence[float]) -> Int64:
    """Slots of each set in a block: shares rounded to whole slots that sum to BLOCK, at least one each."""
    share = np.asarray(weights, np.float64) / sum(weights) * BLOCK
    whole = np.maximum(np.floor(share).astype(np.int64), 1)
    while whole.sum() != BLOCK:  # largest remainder first; ties to the first set
        missing = BLOCK - whole.sum()
        remainder = share - whole
        place = int(np.argmax(remainder)) if missing > 0 else int(np.argmin(np.where(whole > 1, remainder, np.inf)))
        whole[place] += 1 if missing > 0 else -1
    return whole


class MixedSet:
    """Several shard sets of the same kind read as one; shards are numbered consecutively through the sets."""

    def __init__(self, sets: Sequence[ShardSet]) -> None:
        """Raises UserError if classes, patch size, channels or dtype differ."""
        self.sets = list(sets)
        self.manifest = _joined(self.sets)
        self.layout = self.sets[0].layout
        self._first = {
            split: np.cumsum([0, *(len(item.sizes(split)) for item in self.sets)]) for split in ("train", "val")
        }

    def sizes(self, split: str) -> list[int]:
        """Records per shard of a split, for all sets in order."""
        return [size for item in self.sets for size in item.sizes(split)]

    def gather(self, split: str, shard: Int64, record: Int64, rows: NDArray[np.uint8]) -> None:
        """As `ShardSet.gather`."""
        number, own_shard = self._locate(split, shard)
        for item in np.unique(number).tolist():
            places = np.flatnonzero(number == item)
            part = np.empty((len(places), rows.shape[1]), np.uint8)
            self.sets[item].gather(split, own_shard[places], record[places], part)
            rows[places] = part

    def name(self, split: str, shard: int, record: int) -> str:
        """As `ShardSet.name`."""
        number, own_shard = self._locate(split, np.array([shard]))
        return self.sets[int(number[0])].name(split, int(own_shard[0]), record)

    def _locate(self, split: str, shard: Int64) -> tuple[Int64, Int64]:
        first = self._first[split]
        number = np.searchsorted(first, shard, side="right") - 1
        return number, shard - first[number]


def _joined(sets: list[ShardSet]) -> Manifest:
    """The first set's manifest with all shards, summed class counts and pooled mean and standard deviation."""
    first = sets[0].manifest
    for item in sets[1:]:
        for what in ("classes", "patch", "channels", "dtype", "scale"):
            one, other = getattr(first, what), getattr(item.manifest, what)
            if one != other:
                raise UserError(
                    f"{sets[0].folder} and {item.folder} can't be mixed: {what} {one} and {other}; rebuild one of them"
                )
    manifests = [item.manifest for item in sets]
    share = np.array([manifest.samples("train") for manifest in manifests], np.float64)
    share /= share.sum()
    means = np.array([manifest.mean for manifest in manifests])
    squares = np.array([manifest.std for manifest in manifests]) ** 2 + means**2
    mean = share @ means
    return replace(
        first,
        shards=tuple(shard for manifest in manifests for shard in manifest.shards),
        mean=tuple(mean.tolist()),
        std=tuple(np.sqrt(np.maximum(share @ squares - mean**2, 0)).tolist()),
        pixels=tuple(np.sum([manifest.pixels for manifest in manifests], axis=0).tolist()),
        ignored_pixels=sum(manifest.ignored_pixels for manifest in manifests),
        sources={},
    )
