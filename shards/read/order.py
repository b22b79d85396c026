"""The order of samples as a pure function: sample = f(seed, epoch, step, slot in the global batch).

B global batch (what one optimizer step sees, over ranks and accumulation), F flips (4, or 1 without), N patches,
M = F·N (patch, flip) pairs, L = M // B steps per epoch.

An epoch makes F passes over all N patches, each with its own permutation of the shards; the M pairs form one virtual
list. The list is rotated by an epoch-dependent offset and cut into B equal parts; slot b of every batch walks through
part b. Inside a part, windows of positions are shuffled by a keyed permutation, so a slot reads one stretch of a few
shards at a time. The sample of any step is computed, not remembered: resuming costs nothing, and the order is
independent of the number of ranks and workers. Each patch is seen once under each flip: pass p shows it under flip
(p + h) mod 4, with h drawn per patch and epoch.

The M - B·L < B pairs that don't fill a last batch are left out. Because the list is rotated, they differ in each epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from segdist.core.errors import UserError
from segdist.core.keyed import Purpose, generator, hash64, permute

WINDOW = 16384
"""Number of positions shuffled with each other inside a slot's part of the epoch."""

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Samples:
    """The samples at some steps and slots; all arrays have the same shape, usually (steps, slots)."""

    shard: Int64
    """Number of the shard in its split."""
    record: Int64
    """Number of the record in its shard."""
    flip: NDArray[np.uint8]
    """0 to 3; bit 0 mirrors left and right, bit 1 up and down."""

    def row(self, place: int | slice) -> "Samples":
        """The samples of one step or of a slice."""
        return Samples(self.shard[place], self.record[place], self.flip[place])


def slots_of_rank(global_batch: int, rank: int, world_size: int, grain: int = 1) -> range:
    """The slots of the global batch that `rank` computes: ⌊rB/W⌋ up to ⌊(r+1)B/W⌋.

    Args:
        grain: ranks get whole grains of this many slots; the global batch is a multiple of it.

    Raises:
        UserError: more ranks than slots, or than grains.
    """
    grains = global_batch // grain
    if world_size > grains:
        what = f" in grains of {grain}" if grain > 1 else ""
        raise UserError(
            f"{world_size} ranks share a global batch of {global_batch}{what}, so some would get no sample; "
            "raise --batch-size or start fewer ranks"
        )
    return range(rank * grains // world_size * grain, (rank + 1) * grains // world_size * grain)


class SampleOrder:
    """The training order of one shard set; see the module docstring.

    It needs F + 1 lists as long as the number of shards, regardless of the number of samples.
    """

    def __init__(
        self, shard_sizes: Sequence[int], global_batch: int, seed: int, *, flips: bool = True, window: int = WINDOW
    ) -> None:
        """`shard_sizes`: records per shard of the split. `flips`: show every patch under all four flips in each epoch.

        Raises:
            UserError: the set has fewer pairs than one global batch.
        """
        self.sizes = np.asarray(shard_sizes, np.int64)
        self.global_batch, self.seed, self.window = global_batch, seed, window
        self.flips = 4 if flips else 1
        self.patches = int(self.sizes.sum())
        self.pairs = self.flips * self.patches
        self.steps_per_epoch = self.pairs // global_batch
        if global_batch < 1 or window < 1:
            raise UserError(f"a global batch of {global_batch} and a window of {window} must both be at least 1")
        if not self.steps_per_epoch:
            raise UserError(
                f"the set has {self.patches} patches, {self.pairs} with their flips, and a global batch needs "
                f"{global_batch}; lower --batch-size or make more patches"
            )
        # Two epochs: a prefetching reader is at the end of one and at the start of the next.
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def samples(self, epoch: int, steps: Int64 | range | Sequence[int], slots: range) -> Samples:
        """The samples of `steps` (each below `steps_per_epoch`) at `slots` of the global batch."""
        return self.at(epoch, np.asarray(steps, np.int64)[:, None], np.asarray(slots, np.int64)[None, :])

    def at(self, epoch: int, step: Int64, slot: Int64) -> Samples:
        """The same elementwise: `step` and `slot` are arrays that broadcast."""
        passes = self._epoch(epoch)
        window = step // self.window
        start = window * self.window
        size = np.minimum(self.window, self.steps_per_epoch - start)
        key = hash64(self.seed, Purpose.ORDER_WINDOW, epoch, slot, window)
        moved = start + permute(step - start, size, key).astype(np.int64)
        position = passes.offset + slot * self.steps_per_epoch + moved
        position -= self.pairs * (position >= self.pairs)  # both are below `pairs`: no division is needed
        sweep = position // self.patches
        place = position - sweep * self.patches
        # One search for all passes: pass p's cumulative sizes are stored with p·N added.
        entry = np.searchsorted(passes.ends, position, side="right")
        shard = passes.shards[entry]
        record = place - (passes.ends[entry] - sweep * self.patches - self.sizes[shard])
        if self.flips == 1:
            flip = np.zeros(record.shape, np.uint8)
        else:
            flip = (
                (sweep.astype(np.uint64) + hash64(self.seed, Purpose.ORDER_FLIP, epoch, shard, record)) & np.uint64(3)
            ).astype(np.uint8)
        return Samples(shard, record, flip)

    def _make_epoch(self, epoch: int) -> "_Epoch":
        lists = [
            generator(self.seed, Purpose.ORDER_SHARDS, epoch, sweep).permutation(len(self.sizes))
            for sweep in range(self.flips)
        ]
        shards = np.concatenate(lists)
        offset = int(hash64(self.seed, Purpose.ORDER_ROTATION, epoch) % np.uint64(self.pairs))
        return _Epoch(offset, shards, np.cumsum(self.sizes[shards]))


@dataclass(frozen=True)
class _Epoch:
    offset: int
    shards: Int64
    """The permuted shard lists of all passes, concatenated."""
    ends: Int64
    """Where each entry of `shards` ends in the epoch's list of pairs."""
