"""Reading a shard set: batches gathered straight from mapped tars into reused buffers.

A tar is mapped, not read: of an npy shard, a record's pixels are a row of one strided view, and a batch is one copy
per sample out of the page cache. No worker processes: handing a batch of small patches from one process to another
costs more than making it, so a thread gathers the next batches beside the training step instead (copies and PNG
decoding let other threads run).

B samples in the batch (those of this rank), C channels, P patch side.
"""

import hashlib
import io
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from shards.errors import UserError
from shards.manifest import Manifest, ShardInfo, read_manifest
from shards.order import Int64, Samples, slots_of_rank
from shards.remote import RemoteSet, is_url
from shards.shard_file import index_dtype, record_crc
from shards.tar_records import BLOCK, END, NpyLayout, decode_png, headers, keys

Check = Literal["none", "sizes", "shards", "records"]

ORDER_BLOCK = 8192
"""Samples whose order is computed at once: a call costs as much for one."""

MAX_MAPPED = 16384
"""Shards that are mapped at the same time; a process may have 65,530 mappings on Linux."""


class ShardSet:
    """A finished shard set, open for reading.

    `check` says what is looked at before samples are used: "sizes" the size of every file at opening, and both ends of
    a shard when it is first used; "shards" also the checksum of each shard when it is first used; "records" also the
    checksum of every record each time it is read; "none" nothing, for those who check themselves.
    """

    def __init__(self, folder: str | Path, *, check: Check = "sizes", cache: Path | None = None) -> None:
        """`folder` may be a URL; then `cache` says where fetched files are kept (`shards.remote.default_cache`).

        Raises:
            UserError: an unfinished set, missing or truncated files (named), a URL that can't be reached.
        """
        self.check = check
        self._remote = RemoteSet(str(folder), cache) if is_url(folder) else None
        self.folder = self._remote.folder if self._remote else Path(folder)
        self.manifest: Manifest = self._remote.manifest if self._remote else read_manifest(self.folder)
        self.layout = NpyLayout(self.manifest.patch, self.manifest.channels, self.manifest.dtype)
        self._shards = {split: self.manifest.of_split(split) for split in ("train", "val")}
        # What is fetched is checked then.
        shards = () if check == "none" or self._remote else self.manifest.shards
        problems = [problem for shard in shards if (problem := size_problem(self.folder, shard))]
        if problems:
            shown = "\n  ".join(problems[:10]) + ("\n  …" if len(problems) > 10 else "")
            raise UserError(
                f"{self.folder}: the shard set is damaged:\n  {shown}\n"
                "copy these files again, or build the set again with `segdist make-shards --overwrite`"
            )
        self._views = lru_cache(maxsize=MAX_MAPPED)(self._map)
        self._index = lru_cache(maxsize=MAX_MAPPED)(self._read_index)

    def sizes(self, split: str) -> list[int]:
        """Records per shard of a split; what `SampleOrder` takes."""
        return [shard.samples for shard in self._shards[split]]

    def gather(self, split: str, shard: Int64, record: Int64, images: NDArray[Any], masks: NDArray[np.uint8]) -> None:
        """Copy samples into `images` (B, C, P, P) of the stored dtype and `masks` (B, P, P).

        Raises:
            UserError: a damaged shard or record, by name.
        """
        pairs = zip(shard.tolist(), record.tolist(), strict=True)
        if self.manifest.encoding == "npy":
            for place, (number, row) in enumerate(pairs):
                all_images, all_masks = self._views(split, number)
                images[place] = all_images[row]
                masks[place] = all_masks[row]
        else:
            for place, (number, row) in enumerate(pairs):
                self._decode(split, number, row, images[place], masks[place])
        if self.check == "records":
            for place, (number, row) in enumerate(zip(shard.tolist(), record.tolist(), strict=True)):
                if record_crc(images[place], masks[place]) != self.index(split, number)["crc"][row]:
                    raise UserError(f"{self.name(split, number, row)}: damaged (wrong checksum); {self._way_out()}")

    def index(self, split: str, shard: int) -> NDArray[Any]:
        """The index of one shard, one entry per record."""
        return self._index(split, shard)

    def name(self, split: str, shard: int, record: int) -> str:
        """Where a sample is and where it comes from, for messages."""
        info = self._shards[split][shard]
        try:
            entry = self.index(split, shard)[record]
        except UserError:
            return f"{self.folder / info.file} record {record}"
        source = self.manifest.sources[split][int(entry["source"])]
        return f"{self.folder / info.file} record {record} (from {source.image} at y={entry['y']}, x={entry['x']})"

    def _map(self, split: str, number: int) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """All images (n, C, P, P) and masks (n, P, P) of an npy shard; all bytes twice of a PNG shard."""
        info = self._shards[split][number]
        path = self.folder / info.file
        if self._remote:
            self._remote.fetch(info.file, info.sha256, info.bytes)
        # torch maps without keeping the file open, so that sets of many shards don't run out of file handles.
        content = torch.from_file(str(path), shared=False, size=info.bytes, dtype=torch.uint8).numpy()
        content.flags.writeable = False
        if self.check == "shards" and hashlib.sha256(content.data).hexdigest() != info.sha256:
            raise UserError(f"{path}: damaged (wrong checksum); {self._way_out()}")
        if self.manifest.encoding == "png":
            return content, content
        rows = content[: info.samples * self.layout.stride].reshape(info.samples, self.layout.stride)
        if self.check != "none":
            self._check_ends(path, info, rows, content[rows.size :])
        return self.layout.images(rows), self.layout.masks(rows)

    def _check_ends(self, path: Path, info: ShardInfo, rows: NDArray[np.uint8], end: NDArray[np.uint8]) -> None:
        """A cheap look: a file of the right size with other content is seldom right at both ends."""
        for record in {0, info.samples - 1} - {-1}:
            expected = self.layout.frame(keys(info.number, record, 1))[0]
            if not np.array_equal(rows[record, : self.layout.image_offset], expected[: self.layout.image_offset]):
                raise UserError(f"{path} record {record}: damaged header; {self._way_out()}")
        if end.tobytes() != END:
            raise UserError(f"{path}: damaged end; {self._way_out()}")

    def _decode(self, split: str, number: int, record: int, image: NDArray[Any], mask: NDArray[np.uint8]) -> None:
        content, _ = self._views(split, number)
        entry = self.index(split, number)[record]
        digits = keys(self._shards[split][number].number, record, 1)
        for name, out in (("image", image), ("mask", mask)):
            at, size = int(entry[f"{name}_at"]), int(entry[f"{name}_bytes"])
            header = headers(digits, f".{name}.png", np.array([size]))[0]
            try:
                if not np.array_equal(content[at - BLOCK : at], header):
                    raise ValueError("damaged header")
                out[...] = decode_png(content[at : at + size].data)
            except (OSError, ValueError, SyntaxError) as error:
                where = self.name(split, number, record)
                raise UserError(f"{where}: damaged ({error}); {self._way_out()}") from None

    def _read_index(self, split: str, number: int) -> NDArray[Any]:
        info = self._shards[split][number]
        path = self.folder / info.index_file
        if self._remote:
            self._remote.fetch(info.index_file, info.index_sha256)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: can't be read ({error.strerror}); {self._way_out()}") from None
        if hashlib.sha256(content).hexdigest() != info.index_sha256:
            raise UserError(f"{path}: damaged (wrong checksum); {self._way_out()}")
        entries: NDArray[Any] = np.load(io.BytesIO(content))
        assert entries.dtype == index_dtype(len(self.manifest.classes), self.manifest.encoding)
        return entries

    def _way_out(self) -> str:
        return f"copy the file again, or build {self.folder} again with `segdist make-shards --overwrite`"


def size_problem(folder: Path, shard: ShardInfo) -> str | None:
    """What is wrong with a shard's files, as far as names and sizes tell."""
    path = folder / shard.file
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"{path}: can't be read ({error.strerror})"
    if size != shard.bytes:
        return f"{path}: {size} bytes instead of {shard.bytes}"
    return None if (folder / shard.index_file).exists() else f"{folder / shard.index_file}: missing"


class Samplable(Protocol):
    """What batches are made from: a `ShardSet`, or several as one (`shards.mixing.MixedSet`)."""

    manifest: Manifest

    def sizes(self, split: str) -> list[int]: ...

    def gather(
        self, split: str, shard: Int64, record: Int64, images: NDArray[Any], masks: NDArray[np.uint8]
    ) -> None: ...

    def name(self, split: str, shard: int, record: int) -> str: ...


class Order(Protocol):
    """What says which samples come: `SampleOrder` or `shards.mixing.MixedOrder`."""

    global_batch: int
    steps_per_epoch: int

    def samples(self, epoch: int, steps: range, slots: range) -> Samples: ...


@dataclass
class Batch:
    """What one rank computes of a step. The tensors are reused: valid until the next batch is asked for."""

    images: torch.Tensor
    """(B, C, P, P), stored dtype."""
    masks: torch.Tensor
    """(B, P, P), uint8."""
    flips: torch.Tensor
    """(B,), uint8: bit 0 mirrors left and right, bit 1 up and down. Not yet applied (`shards.augment`)."""
    epoch: int
    step: int
    slots: range
    samples: Samples
    """Shards, records and flips, each (B,)."""
    shard_set: Samplable
    split: str

    def names(self) -> list[str]:
        """Where each sample stands and comes from, for messages."""
        pairs = zip(self.samples.shard.tolist(), self.samples.record.tolist(), strict=True)
        return [self.shard_set.name(self.split, shard, record) for shard, record in pairs]


@dataclass(frozen=True)
class _Request:
    """One batch to be gathered."""

    epoch: int
    step: int
    slots: range
    samples: Samples


class TrainBatches:
    """This rank's part of every global batch, in the order of `order`.

    `prefetch` batches are gathered ahead by `workers` threads; 0 gathers when the batch is asked for. The samples are
    the same either way. One thread keeps up with npy sets; PNG sets gain from more.
    """

    def __init__(
        self,
        shard_set: Samplable,
        order: Order,
        rank: int = 0,
        world_size: int = 1,
        *,
        prefetch: int = 4,
        workers: int = 1,
        pin: bool = False,
    ) -> None:
        """`pin`: page-locked buffers, for copies to a GPU that run beside the computation."""
        self.order = order
        self.slots = slots_of_rank(order.global_batch, rank, world_size)
        self._source = _Source(shard_set, "train", len(self.slots), prefetch, workers, pin)

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from `first_step` on; starting late costs nothing."""
        return self._source.stream(self._requests(epoch, first_step))

    def _requests(self, epoch: int, first_step: int) -> Iterator[_Request]:
        per_block = max(1, ORDER_BLOCK // len(self.slots))
        for start in range(first_step, self.order.steps_per_epoch, per_block):
            steps = range(start, min(start + per_block, self.order.steps_per_epoch))
            block = self.order.samples(epoch, steps, self.slots)
            for row, step in enumerate(steps):
                yield _Request(epoch, step, self.slots, block.row(row))


class ValidationBatches:
    """The validation split in fixed batches, the last one short; whole batches are dealt to the ranks.

    Every patch comes exactly once over the ranks, and the batches are the same for any number of ranks. Batch k is
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
        workers: int = 1,
        pin: bool = False,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"a validation batch of {batch_size} patches; at least 1")
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.ends = np.cumsum(shard_set.sizes("val"), dtype=np.int64)
        self.samples = shard_set.manifest.samples("val")
        self._source = _Source(shard_set, "val", batch_size, prefetch, workers, pin)

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self._numbers())

    def __iter__(self) -> Iterator[Batch]:
        return self._source.stream(self._requests())

    def _numbers(self) -> range:
        return range(self.rank, -(-self.samples // self.batch_size), self.world_size)

    def _requests(self) -> Iterator[_Request]:
        for number in self._numbers():
            slots = range(number * self.batch_size, min((number + 1) * self.batch_size, self.samples))
            position = np.arange(slots.start, slots.stop)
            shard = np.searchsorted(self.ends, position, side="right")
            record = position - np.concatenate([[0], self.ends])[shard]
            yield _Request(0, number, slots, Samples(shard, record, np.zeros(len(slots), np.uint8)))


class _Source:
    """Turns requests into batches, through a ring of buffers."""

    def __init__(self, shard_set: Samplable, split: str, batch: int, prefetch: int, workers: int, pin: bool) -> None:
        self.shard_set, self.split = shard_set, split
        self.prefetch, self.workers = prefetch, workers
        self._batch, self._pin = batch, pin
        self._free: list[_Buffer] = []

    def stream(self, requests: Iterable[_Request]) -> Iterator[Batch]:
        """Batches in the order of the requests. Errors of the threads are raised here, at their batch."""
        with self._buffers(max(self.prefetch, 1) + 1) as free:
            if self.prefetch == 0:
                buffer = free[0]
                for request in requests:
                    yield self._gather(request, buffer)
                return
            yield from self._stream_ahead(requests, deque(free))

    def _stream_ahead(self, requests: Iterable[_Request], free: "deque[_Buffer]") -> Iterator[Batch]:
        waiting = iter(requests)
        running: deque[tuple[Future[Batch], _Buffer]] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="shards")
        try:
            while True:
                # Fill every buffer but the one that the consumer holds while this generator sleeps.
                while free and (request := next(waiting, None)) is not None:
                    buffer = free.popleft()
                    running.append((pool.submit(self._gather, request, buffer), buffer))
                if not running:
                    return
                future, buffer = running.popleft()
                yield future.result()
                free.append(buffer)
        finally:
            # Also when the consumer leaves early or fails: no thread may write into the buffers afterwards.
            pool.shutdown(wait=True, cancel_futures=True)

    @contextmanager
    def _buffers(self, count: int) -> Iterator[list["_Buffer"]]:
        """Buffers of this stream alone; they are kept for the next stream."""
        manifest = self.shard_set.manifest
        mine = [self._free.pop() for _ in range(min(count, len(self._free)))]
        mine += [_Buffer.allocate(manifest, self._batch, self._pin) for _ in range(count - len(mine))]
        try:
            yield mine
        finally:
            self._free += mine

    def _gather(self, request: _Request, buffer: "_Buffer") -> Batch:
        count = len(request.slots)
        samples = request.samples
        images, masks = buffer.image_array[:count], buffer.mask_array[:count]
        self.shard_set.gather(self.split, samples.shard, samples.record, images, masks)
        return Batch(
            images=buffer.images[:count],
            masks=buffer.masks[:count],
            flips=torch.from_numpy(samples.flip),
            epoch=request.epoch,
            step=request.step,
            slots=request.slots,
            samples=samples,
            shard_set=self.shard_set,
            split=self.split,
        )


@dataclass(frozen=True)
class _Buffer:
    images: torch.Tensor
    masks: torch.Tensor
    image_array: NDArray[Any]
    mask_array: NDArray[np.uint8]

    @classmethod
    def allocate(cls, manifest: Manifest, batch: int, pin: bool) -> "_Buffer":
        dtype = {"uint8": torch.uint8, "uint16": torch.uint16}[manifest.dtype]
        images = torch.zeros(batch, manifest.channels, manifest.patch, manifest.patch, dtype=dtype)
        masks = torch.zeros(batch, manifest.patch, manifest.patch, dtype=torch.uint8)
        if pin:
            images, masks = images.pin_memory(), masks.pin_memory()
        return cls(images, masks, images.numpy(), masks.numpy())
