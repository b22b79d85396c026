"""Loading speed of this reader, its peers and the hardware limit, on the same 8,000 patches.

    python -m tests.benchmarks.loader            about two minutes; run it on an otherwise idle machine

All deliver batches of 16 gray 96 x 96 pairs in random order, as float32 images and int64 masks (or stored bytes), in
one process unless noted. Contenders alternate, so that temporary slowness affects all; the table shows medians, and
bars are ratios within a round. The exit code is 1 if a bar is missed.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from segdist.core.keyed import generator
from shards.build.build import make_shards
from shards.build.config import MakeShardsConfig, PatchesConfig, SplitConfig, SyntheticConfig
from shards.build.patches import cut_patches
from shards.build.sources import ArrayImage
from shards.build.synthetic import CLASSES, draw
from shards.build.writer import ShardWriter, Target
from shards.read.batches import TrainBatches
from shards.read.order import SampleOrder
from shards.read.reader import ShardSet
from tests.benchmarks.bars import Bars
from tests.benchmarks.cases import benchmark

IMAGES, PER_IMAGE, PATCH, BATCH = 400, 20, 96, 16
SECONDS = 1.0
"""Seconds per contender and round."""

Batches = Callable[[], Iterator[Any]]


@dataclass
class Contender:
    """One way to load batches, and its samples per second in each round."""

    name: str
    batches: Batches
    rates: list[float] = field(default_factory=list)
    _stream: Iterator[Any] | None = None

    def run(self, seconds: float) -> None:
        """Load batches for about `seconds`, across epochs, after one that starts the stream."""
        samples, started = 0, 0.0
        while True:
            if self._stream is None:
                self._stream = self.batches()
                next(self._stream, None)
                started = started or time.perf_counter()
            started = started or time.perf_counter()
            for batch in self._stream:
                samples += len(batch[0])
                elapsed = time.perf_counter() - started
                if elapsed > seconds:
                    self.rates.append(samples / elapsed)
                    return
            self._stream = None

    @property
    def median(self) -> float:
        return statistics.median(self.rates)


class Converter:
    """Converts bytes to float32 images and int64 masks in reused buffers."""

    def __init__(self) -> None:
        self.images = torch.empty(BATCH, 1, PATCH, PATCH)
        self.masks = torch.empty(BATCH, PATCH, PATCH, dtype=torch.int64)

    def __call__(self, images: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images.copy_(images), self.masks.copy_(masks)


def main(words: list[str]) -> int:
    """Measure, print the table and check the bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        npy, png = (build_set(root, encoding) for encoding in ("npy", "png"))
        images, masks = load_all(npy)
        contenders = full_batches(npy, png, images, masks, root) + byte_batches(npy, images, masks)
        for number in range(arguments.rounds):
            for contender in contenders:
                contender.run(SECONDS)
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
        building = building_rate(root, arguments.rounds)
    print_table(contenders)
    print(f"building from images in memory, one process: {building:,.0f} patches/s")
    return judge({contender.name: contender for contender in contenders}, building)


def build_set(root: Path, encoding: str) -> Path:
    """Build the 8,000 patches as a shard set."""
    config = MakeShardsConfig(
        name=encoding,
        root=root,
        encoding=encoding,  # type: ignore[arg-type]
        synthetic=SyntheticConfig(train=IMAGES, test=0),
        split=SplitConfig(validation=0),
        patches=PatchesConfig(size=PATCH, per_image=PER_IMAGE, drop_background=False),
    )
    make_shards(config)
    return config.folder


def load_all(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """All patches of a set: images (8000, 1, P, P) and masks (8000, P, P)."""
    shard_set = ShardSet(folder)
    sizes = shard_set.sizes("train")
    record = np.concatenate([np.arange(size) for size in sizes])
    images, masks = shard_set.read("train", np.repeat(np.arange(len(sizes)), sizes), record)
    return np.ascontiguousarray(images), np.ascontiguousarray(masks)


def full_batches(npy: Path, png: Path, images: np.ndarray, masks: np.ndarray, root: Path) -> list[Contender]:
    """Contenders that deliver float32 images and int64 masks."""
    folder = write_png_folder(root / "folder", images, masks)
    contenders = [
        Contender("in-memory gather, reused buffers", lambda: gather_reused(images, masks, Converter())),
        Contender("in-memory gather, new arrays", lambda: gather_new(images, masks)),
        Contender("segdist npy", lambda: ours(npy, Converter(), prefetch=0)),
        Contender("segdist npy, prefetch thread", lambda: ours(npy, Converter(), prefetch=4)),
        Contender("segdist npy, every record checked", lambda: ours(npy, Converter(), prefetch=0, check="records")),
        Contender("segdist png", lambda: ours(png, Converter(), prefetch=0)),
        Contender("segdist png, a thread ahead", lambda: ours(png, Converter(), prefetch=8)),
        Contender("webdataset, npy tars", lambda: stock_webdataset(npy, "npy")),
        Contender("webdataset, npy tars, 2 workers", lambda: stock_webdataset(npy, "npy", workers=2)),
        Contender("webdataset, png tars", lambda: stock_webdataset(png, "png")),
        Contender("PNG folder, DataLoader", lambda: png_folder(folder, workers=0)),
        Contender("PNG folder, DataLoader, 2 workers", lambda: png_folder(folder, workers=2)),
    ]
    for name, make in (("MosaicML Streaming", mosaicml), ("litdata", litdata_stream)):
        try:
            contenders.append(Contender(name, make(root, images, masks)))
        except ImportError as error:
            print(f"{name} is not installed ({error}), left out", file=sys.stderr)
    return contenders


def byte_batches(npy: Path, images: np.ndarray, masks: np.ndarray) -> list[Contender]:
    """Contenders that deliver bytes, for conversion on the device."""
    return [
        Contender("bytes: in-memory gather", lambda: gather_reused(images, masks, None)),
        Contender("bytes: segdist npy", lambda: ours(npy, None, prefetch=0)),
        Contender("bytes: segdist npy, prefetch thread", lambda: ours(npy, None, prefetch=4)),
    ]


def gather_reused(images: np.ndarray, masks: np.ndarray, convert: Converter | None) -> Iterator[Any]:
    """The limit: copying rows of two in-memory arrays into reused buffers."""
    image_rows, mask_rows = images.reshape(len(images), -1), masks.reshape(len(masks), -1)
    image_buffer = torch.empty(BATCH, 1, PATCH, PATCH, dtype=torch.uint8)
    mask_buffer = torch.empty(BATCH, PATCH, PATCH, dtype=torch.uint8)
    outs = image_buffer.numpy().reshape(BATCH, -1), mask_buffer.numpy().reshape(BATCH, -1)
    order = np.random.default_rng(0).permutation(len(images)).reshape(-1, BATCH)
    for chosen in order:
        np.take(image_rows, chosen, axis=0, out=outs[0], mode="clip")
        np.take(mask_rows, chosen, axis=0, out=outs[1], mode="clip")
        yield convert(image_buffer, mask_buffer) if convert else (image_buffer, mask_buffer)


def gather_new(images: np.ndarray, masks: np.ndarray) -> Iterator[Any]:
    """The obvious way: fancy indexing and conversion into new arrays."""
    for chosen in np.random.default_rng(0).permutation(len(images)).reshape(-1, BATCH):
        yield torch.from_numpy(images[chosen].astype(np.float32)), torch.from_numpy(masks[chosen].astype(np.int64))


def ours(folder: Path, convert: Converter | None, prefetch: int, check: Any = "sizes") -> Iterator[Any]:
    """This project's reader with its sample order; an epoch has 32,000 samples."""
    shard_set = ShardSet(folder, check=check)
    order = SampleOrder(shard_set.sizes("train"), BATCH, 0)
    epoch = 0
    while True:
        for batch in TrainBatches(shard_set, order, prefetch=prefetch).batches(epoch):
            yield convert(batch.images, batch.masks) if convert else (batch.images, batch.masks)
        epoch += 1


def stock_webdataset(folder: Path, encoding: str, workers: int = 0) -> Iterator[Any]:
    """webdataset as in its documentation."""
    import webdataset

    def convert(batch: Any) -> Any:
        images, masks = (torch.as_tensor(np.stack(list(part))) for part in batch)
        return images.reshape(-1, 1, PATCH, PATCH).float(), masks.long()

    shards = sorted(map(str, folder.glob("train-*.tar")))
    dataset = webdataset.WebDataset(shards, shardshuffle=len(shards)).shuffle(1000)
    dataset = dataset.decode("l8") if encoding == "png" else dataset.decode()
    dataset = dataset.to_tuple(f"image.{encoding}", f"mask.{encoding}").batched(BATCH, collation_fn=transpose)
    return iter(webdataset.WebLoader(dataset.map(convert), batch_size=None, num_workers=workers))


def transpose(samples: list[Any]) -> tuple[Any, ...]:
    """A list of pairs as a pair of lists."""
    return tuple(zip(*samples, strict=True))


def write_png_folder(folder: Path, images: np.ndarray, masks: np.ndarray) -> Path:
    """One PNG file per image and per mask."""
    for kind, arrays in (("images", images[:, 0]), ("masks", masks)):
        (folder / kind).mkdir(parents=True)
        for number, array in enumerate(arrays):
            Image.fromarray(array).save(folder / kind / f"{number:05}.png")
    return folder


class PngFolder(torch.utils.data.Dataset[Any]):
    """The usual dataset of two folders."""

    def __init__(self, folder: Path) -> None:
        self.images, self.masks = (sorted((folder / kind).iterdir()) for kind in ("images", "masks"))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = (np.asarray(Image.open(files[number])) for files in (self.images, self.masks))
        return torch.from_numpy(image[None].astype(np.float32)), torch.from_numpy(mask.astype(np.int64))


def png_folder(folder: Path, workers: int) -> Iterator[Any]:
    return iter(torch.utils.data.DataLoader(PngFolder(folder), batch_size=BATCH, shuffle=True, num_workers=workers))


def mosaicml(root: Path, images: np.ndarray, masks: np.ndarray) -> Batches:
    """MosaicML Streaming with its array encoding."""
    from streaming import MDSWriter, StreamingDataset

    folder = str(root / "mosaicml")
    columns = {"image": f"ndarray:uint8:1,{PATCH},{PATCH}", "mask": f"ndarray:uint8:{PATCH},{PATCH}"}
    with MDSWriter(out=folder, columns=columns) as writer:
        for image, mask in zip(images, masks, strict=True):
            writer.write({"image": image, "mask": mask})
    dataset = StreamingDataset(local=folder, shuffle=True, batch_size=BATCH)

    def collate(samples: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, labels = (torch.from_numpy(np.stack([sample[key] for sample in samples])) for key in ("image", "mask"))
        return pixels.float(), labels.long()

    return lambda: iter(torch.utils.data.DataLoader(dataset, batch_size=BATCH, collate_fn=collate))


def litdata_stream(root: Path, images: np.ndarray, masks: np.ndarray) -> Batches:
    """litdata with its tensor encoding."""
    import litdata

    folder = str(root / "litdata")
    writer = litdata.streaming.writer.BinaryWriter(folder, chunk_bytes="64MB")
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        writer.add_item(number, {"image": torch.from_numpy(image), "mask": torch.from_numpy(mask)})
    writer.done()
    writer.merge()

    def collate(samples: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, labels = (torch.stack([sample[key] for sample in samples]) for key in ("image", "mask"))
        return pixels.float(), labels.long()

    dataset = litdata.StreamingDataset(folder, shuffle=True)
    return lambda: iter(litdata.StreamingDataLoader(dataset, batch_size=BATCH, collate_fn=collate, num_workers=0))


def building_rate(root: Path, rounds: int) -> float:
    """Patches per second from images in memory to a tar on disk with checksums and index, in one process."""
    settings = PatchesConfig(size=PATCH, per_image=PER_IMAGE, drop_background=False)
    target = Target(MakeShardsConfig(patches=settings), CLASSES, 1, "uint8")
    sources = [ArrayImage(*draw(0, "train", number, 400, 200)) for number in range(100)]
    rates = []
    for _ in range(rounds):
        started = time.perf_counter()
        with (root / "built.tar").open("wb") as file:
            writer = ShardWriter(file, 0, target)
            for number, image in enumerate(sources):
                for patches in cut_patches(image, settings, generator(0, number)):
                    writer.add(patches, number)
            writer.finish()
            writer.index()
            file.flush()
        rates.append(len(sources) * PER_IMAGE / (time.perf_counter() - started))
    return statistics.median(rates)


def print_table(contenders: list[Contender]) -> None:
    limit = contenders[0]
    print(f"\n{os.cpu_count()} cores, torch {torch.__version__}, medians of {len(limit.rates)} rounds")
    print(f"{'batches of 16 pairs, 96 x 96':<40} {'samples/s':>10} {'of the limit':>13}")
    for contender in contenders:
        if contender.name == "bytes: in-memory gather":
            limit = contender
        share = statistics.median(one / other for one, other in zip(contender.rates, limit.rates, strict=True))
        print(f"{contender.name:<40} {contender.median:>10,.0f} {share:>13.2f}")


def judge(by_name: dict[str, Contender], building: float) -> int:
    """Print each bar with its figure; return 1 if one is missed."""

    def ratio(one: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(by_name[one].rates, by_name[other].rates, strict=True))

    bars = Bars()
    reader = "segdist npy"
    bars.at_least("speed / stock webdataset on the same tars", ratio(reader, "webdataset, npy tars"), 20)
    bars.at_least("speed / in-memory gather", ratio(reader, "in-memory gather, reused buffers"), 0.9)
    memory = by_name["bytes: in-memory gather"].median
    if memory >= 200_000:
        bars.at_least("samples/s as bytes", by_name["bytes: segdist npy"].median, 100_000)
    else:
        print(f"bytes: the in-memory gather reaches {memory:,.0f} samples/s here, below 200,000; no bar")
    bars.at_least("patches/s built by one process", building, 3000)
    return bars.finish()


if __name__ == "__main__":
    benchmark(main)
