"""A rank's batches from a shard set: in training order, or the fixed batches of validation.

Several batches are gathered into one buffer at a time (one batch would cost just as much), and a ring of buffers is
reused. There are no worker processes: passing a batch of small patches between processes costs more than making it, so
a thread gathers the next batches during the training step instead (copying releases the interpreter lock).

B samples of this rank in the batch, C channels, P patch side.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from segdist.core.errors import UserError
from shards.manifest import Manifest
from shards.read.order import Int64, Samples, slots_of_rank
from shards.records import NpyLayout

GROUP_BYTES = 4 << 20
"""Records to gather at once, at least one batch: many small ones in a single call, or a few big ones."""

ORDER_BLOCK = 8192
"""Number of samples whose order is computed at once."""


class Samplable(Protocol):
    """A source of batches: a `ShardSet`, or several as one (`shards.read.mixing.MixedSet`)."""

    manifest: Manifest
    layout: NpyLayout

    def sizes(self, split: str) -> list[int]: ...

    def gather(self, split: str, shard: Int64, record: Int64, rows: NDArray[np.uint8]) -> None: ...

    def name(self, split: str, shard: int, record: int) -> str: ...


class Order(Protocol):
    """An order of samples: `SampleOrder` or `shards.read.mixing.MixedOrder`."""

    global_batch: int
    steps_per_epoch: int

    def samples(self, epoch: int, steps: range, slots: range) -> Samples: ...


@dataclass(slots=True)
class Batch:
    """One rank's part of a step. The object and its tensors are reused: valid until the next batch is requested."""

    images: torch.Tensor
    """(B, C, P, P), stored dtype; a view with gaps between the samples."""
    masks: torch.Tensor
    """(B, P, P), uint8; likewise."""
    rows: torch.Tensor
    """(B, stride), uint8, contiguous: the records behind the views `images` and `masks`."""
    flips: torch.Tensor
    """(B,), uint8: bit 0 mirrors left and right, bit 1 up and down. Not applied yet (see `segdist.training`)."""
    place: slice
    """The batch's position within its group."""
    shard_set: Samplable
    split: str
    group: Samples
    """All samples gathered with this batch; `samples` are those at `place`."""
    copies: list[torch.cuda.Event]
    """Copies that may still be running; the buffer waits for them before it is refilled."""
    epoch: int = 0
    step: int = 0
    slots: range = range(0)

    @property
    def samples(self) -> Samples:
        """Shards, records and flips, each (B,)."""
        return self.group.row(self.place)

    def first(self, count: int) -> "Batch":
        """The first `count` samples as a separate batch."""
        images, masks, rows, flips = (tensor[:count] for tensor in (self.images, self.masks, self.rows, self.flips))
        place = slice(self.place.start, self.place.start + count)
        return replace(self, images=images, masks=masks, rows=rows, flips=flips, place=place)

    def to(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and masks on `device`, moved in one piece, asynchronously if the buffers are pinned."""
        if device.type == "cpu":
            return self.images, self.masks
        rows = self.rows.to(device, non_blocking=True)
        if self.rows.is_pinned():
            self.copies.append(torch.cuda.current_stream(device).record_event())
        return views(rows, self.shard_set.layout)

    def names(self) -> list[str]:
        """Where each sample is stored and where it comes from, for messages."""
        samples = self.samples
        pairs = zip(samples.shard.tolist(), samples.record.tolist(), strict=True)
        return [self.shard_set.name(self.split, shard, record) for shard, record in pairs]


def views(rows: torch.Tensor, layout: NpyLayout) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, C, P, P) and masks (B, P, P) in records (B, stride)."""
    patch = layout.patch
    dtype = {"uint8": torch.uint8, "uint16": torch.uint16}[layout.dtype]
    images = rows[:, layout.image_offset : layout.image_offset + layout.image_bytes].view(dtype)
    masks = rows[:, layout.mask_offset : layout.mask_offset + layout.mask_bytes]
    return images.unflatten(1, (layout.channels, patch, patch)), masks.unflatten(1, (patch, patch))


class TrainBatches:
    """This rank's part of every global batch, in the order of `order`.

    A thread gathers at least `prefetch` batches ahead; with 0, batches are gathered when requested. The samples are the
    same either way. One thread is enough: even small PNG files are decoded mostly under the interpreter lock, so more
    threads would gain nothing.
    """

    def __init__(
        self,
        shard_set: Samplable,
        order: Order,
        rank: int = 0,
        world_size: int = 1,
        *,
        grain: int = 1,
        prefetch: int = 4,
        pin: bool = False,
    ) -> None:
        """`grain`: see `slots_of_rank`. `pin`: page-locked buffers, for copies to a GPU during computation."""
        self.order = order
        self.slots = slots_of_rank(order.global_batch, rank, world_size, grain)
        self._source = _Source(shard_set, "train", len(self.slots), prefetch, pin)

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` starting at `first_step`; skipping steps costs nothing."""
        return self._source.stream(self._groups(epoch, first_step))

    def _groups(self, epoch: int, first_step: int) -> Iterator["_Group"]:
        size, last = len(self.slots), self.order.steps_per_epoch
        per_group = self._source.per_group
        per_block = max(1, ORDER_BLOCK // size // per_group) * per_group
        for start in range(first_step, last, per_block):
            block_steps = range(start, min(start + per_block, last))
            block = self.order.samples(epoch, block_steps, self.slots)
            samples = Samples(block.shard.ravel(), block.record.ravel(), block.flip.ravel())
            for first in range(0, len(block_steps), per_group):
                steps = block_steps[first : first + per_group]
                rows = slice(first * size, (first + len(steps)) * size)
                yield _Group(epoch, samples.row(rows), steps, repeat(self.slots, len(steps)))


class ValidationBatches:
    """The validation split in fixed batches, the last one short; whole batches are assigned to ranks.

    Every patch occurs exactly once over all ranks, and the batches are the same for any number of ranks. Batch k is
    `batch.step`; rank r has k = r, r + W, …
    """

    def __init__(
        self,
        shard_set: Samplable,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        prefetch: int = 4,
        pin: bool = False,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"a validation batch of {batch_size} patches; at least 1")
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.ends = np.cumsum(shard_set.sizes("val"), dtype=np.int64)
        self.samples = shard_set.manifest.samples("val")
        self._source = _Source(shard_set, "val", batch_size, prefetch, pin)

    def __len__(self) -> int:
        """Number of batches of this rank."""
        return len(self._numbers())

    def __iter__(self) -> Iterator[Batch]:
        return self._source.stream(self._groups())

    def _numbers(self) -> range:
        return range(self.rank, -(-self.samples // self.batch_size), self.world_size)

    def _groups(self) -> Iterator["_Group"]:
        numbers = self._numbers()
        for first in range(0, len(numbers), self._source.per_group):
            steps = numbers[first : first + self._source.per_group]
            slots = [range(k * self.batch_size, min((k + 1) * self.batch_size, self.samples)) for k in steps]
            position = np.concatenate([np.arange(part.start, part.stop) for part in slots])
            shard = np.searchsorted(self.ends, position, side="right")
            record = position - np.concatenate([[0], self.ends])[shard]
            yield _Group(0, Samples(shard, record, np.zeros(len(position), np.uint8)), steps, slots)


@dataclass(frozen=True, slots=True)
class _Group:
    """Batches gathered together: their concatenated samples, and the step and slots of each."""

    epoch: int
    samples: Samples
    steps: range
    slots: Iterable[range]


Filled = tuple[_Group, "_Buffer"]


class _Source:
    """Turns groups into batches, through a ring of buffers."""

    def __init__(self, shard_set: Samplable, split: str, batch: int, prefetch: int, pin: bool) -> None:
        self.shard_set, self.split = shard_set, split
        self.per_group = max(1, GROUP_BYTES // (shard_set.layout.stride * batch))
        self.ahead = -(-prefetch // self.per_group)
        """Number of groups to gather ahead."""
        self._batch, self._pin = batch, pin
        self._free: list[_Buffer] = []

    def stream(self, groups: Iterator[_Group]) -> Iterator[Batch]:
        """Batches in the order of the groups. Errors in the thread are raised here, at the batch they belong to.

        The stream has exclusive use of its buffers and returns them for the next stream.
        """
        free = deque(self._free.pop() if self._free else self._new_buffer() for _ in range(self.ahead + 1))
        buffers, size = list(free), self._batch
        gathered = self._gathered_ahead(groups, free) if self.ahead else self._gathered_at_once(groups, free[0])
        try:
            for group, buffer in gathered:
                epoch, samples = group.epoch, group.samples
                for batch, step, slots in zip(buffer.batches, group.steps, group.slots, strict=False):
                    if len(slots) < size:  # the last validation batch
                        batch = batch.first(len(slots))
                    batch.epoch, batch.step, batch.slots, batch.group = epoch, step, slots, samples
                    yield batch
        finally:
            gathered.close()
            self._free += buffers

    def _gathered_at_once(self, groups: Iterator[_Group], buffer: "_Buffer") -> Generator[Filled, None, None]:
        for group in groups:
            self._gather(group, buffer)
            yield group, buffer

    def _gathered_ahead(self, groups: Iterator[_Group], free: "deque[_Buffer]") -> Generator[Filled, None, None]:
        running: deque[tuple[Future[None], _Group, _Buffer]] = deque()
        # Waiting for a copy opens a context on the thread's current GPU, which is the first one unless it is set.
        there = (torch.cuda.set_device, (torch.cuda.current_device(),)) if self._pin else (None, ())
        pool = ThreadPoolExecutor(1, "shards", *there)
        try:
            while True:
                # Fill every buffer except the one whose batches the consumer holds while this generator is suspended.
                while free and (group := next(groups, None)) is not None:
                    buffer = free.popleft()
                    running.append((pool.submit(self._gather, group, buffer), group, buffer))
                if not running:
                    return
                future, group, buffer = running.popleft()
                future.result()
                yield group, buffer
                free.append(buffer)
        finally:
            # Also if the consumer stops early or fails: no thread may write to the buffers afterwards.
            pool.shutdown(wait=True, cancel_futures=True)

    def _gather(self, group: _Group, buffer: "_Buffer") -> None:
        # The device may be many steps behind and still be reading the buffer's old contents.
        while buffer.copies:
            buffer.copies.pop(0).synchronize()
        count = len(group.samples.shard)
        buffer.flips[:count] = group.samples.flip
        try:
            self.shard_set.gather(self.split, group.samples.shard, group.samples.record, buffer.rows[:count])
        except UserError as error:
            # Only one rank reads a damaged record, so only it can name the file.
            error.on_this_rank = True
            raise

    def _new_buffer(self) -> "_Buffer":
        return _Buffer(self.per_group, self._batch, self.shard_set, self.split, self._pin)


class _Buffer:
    """Memory for a group's records and its batches, allocated once: allocating a batch takes longer than filling it."""

    def __init__(self, batches: int, size: int, shard_set: Samplable, split: str, pin: bool) -> None:
        layout = shard_set.layout
        rows = torch.zeros(batches * size, layout.stride, dtype=torch.uint8, pin_memory=pin)
        flips = torch.zeros(batches * size, dtype=torch.uint8)  # only a few bytes, so not pinned: copied synchronously
        self.rows: NDArray[np.uint8] = rows.numpy()
        self.flips: NDArray[np.uint8] = flips.numpy()
        none = Samples(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint8))
        self.copies: list[torch.cuda.Event] = []
        self.batches = []
        for first in range(0, batches * size, size):
            place = slice(first, first + size)
            images, masks = views(rows[place], layout)
            self.batches.append(
                Batch(images, masks, rows[place], flips[place], place, shard_set, split, none, self.copies)
            )
