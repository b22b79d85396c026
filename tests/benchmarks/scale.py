"""Costs that grow with the number of patches, images and ranks: the figures in docs/scale.md.

    python -m tests.benchmarks.scale

Sets are simulated, with real manifests but without tars. Times are processor seconds on one core. Takes about half a
minute and 1 GB of memory.
"""

import multiprocessing
import os
import resource
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from shards.manifest import ClassInfo, Manifest, ShardInfo, SourcePair, read_manifest, write_manifest
from shards.read.order import SampleOrder, slots_of_rank
from shards.records import NpyLayout
from tests.benchmarks.cases import benchmark

PATCH, GLOBAL_BATCH, RANKS = 96, 65536, 8000
SHARD_BYTES = 1024**3
"""Shard size for large sets; the make-shards default of 64 MB suits small ones."""


def simulated_manifest(patches: int, images: int) -> Manifest:
    """The manifest of a set of this size, in shards of `SHARD_BYTES`."""
    stride = NpyLayout(PATCH, 1, "uint8").stride
    records = SHARD_BYTES // stride
    shards = tuple(
        ShardInfo(
            f"train-{number:05}.tar",
            "train",
            min(records, patches - first),
            SHARD_BYTES,
            f"{number:064x}",
            f"{number:064x}",
        )
        for number, first in enumerate(range(0, patches, records))
    )
    sources = tuple(
        SourcePair(f"images/{number:08}.tif", f"masks/{number:08}.png", f"{number:032x}") for number in range(images)
    )
    return Manifest(
        format_version=1,
        recipe={},
        classes=(ClassInfo("background", (0, 0, 0)), ClassInfo("cell", (255, 0, 0))),
        patch=PATCH,
        channels=1,
        dtype="uint8",
        encoding="npy",
        shards=shards,
        mean=(0.5,),
        std=(0.1,),
        pixels=(1, 1),
        ignored_pixels=0,
        sources={"train": sources, "val": (), "test": ()},
    )


def measure_manifest(patches: int, images: int) -> str:
    """Size of the manifest, seconds to read it, and memory of the object."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = simulated_manifest(patches, images)
        write_manifest(folder, manifest)
        size = sum(path.stat().st_size for path in folder.iterdir())
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.process_time()
        read_manifest(folder)
        seconds = time.process_time() - started
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return (
        f"| {patches:.0e} | {images:.0e} | {len(manifest.shards):,} | {size / 1e6:.1f} MB | {seconds:.2f} s "
        f"| {grown / 1024:.0f} MB |"
    )


def measure_order(patches: int) -> str:
    """Memory of the sample order, and the time to compute one rank's slots for any step of an epoch."""
    sizes = [shard.samples for shard in simulated_manifest(patches, 0).shards]
    tracemalloc.start()
    started = time.process_time()
    order = SampleOrder(sizes, GLOBAL_BATCH, seed=0)
    order.samples(0, range(1), range(8))
    first = time.process_time() - started
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    slots = slots_of_rank(GLOBAL_BATCH, RANKS // 2, RANKS)
    steps = np.random.default_rng(0).integers(0, order.steps_per_epoch, 200)
    started = time.process_time()
    for step in steps:
        order.samples(0, [int(step)], slots)
    each = (time.process_time() - started) / len(steps)
    return f"| {patches:.0e} | {len(sizes):,} | {memory / 1e6:.1f} MB | {first * 1e3:.0f} ms | {each * 1e6:.0f} µs |"


def measure_opening(files: int = 10_000) -> str:
    """A rank's file system operations at start-up: one stat per shard and per index."""
    with tempfile.TemporaryDirectory() as name:
        for number in range(files):
            (Path(name) / f"{number}").touch()
        started = time.process_time()
        for number in range(files):
            os.stat(f"{name}/{number}")
        seconds = time.process_time() - started
    return f"one stat: {seconds / files * 1e6:.1f} µs on a local disk"


def measure_ranks(count: int) -> str:
    """Local processes in one gloo group: set-up time, all_reduce time, sockets."""
    with tempfile.TemporaryDirectory() as name:
        context = multiprocessing.get_context("fork")  # torch is loaded once and its memory shared
        results: multiprocessing.SimpleQueue[tuple[float, float, int]] = context.SimpleQueue()
        ranks = [
            context.Process(target=_rank, args=(rank, count, f"file://{name}/store", results)) for rank in range(count)
        ]
        for process in ranks:
            process.start()
        setup, reduce, sockets = results.get()
        for process in ranks:
            process.join()
    return f"| {count} | {setup:.2f} s | {reduce * 1e3:.1f} ms | {sockets} |"


def _rank(rank: int, count: int, store: str, results: "multiprocessing.SimpleQueue[tuple[float, float, int]]") -> None:
    before = count_sockets()
    started = time.perf_counter()
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
    flag = torch.zeros(1, dtype=torch.int32)
    dist.all_reduce(flag)
    setup = time.perf_counter() - started
    started = time.perf_counter()
    for _ in range(20):
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    reduce = (time.perf_counter() - started) / 20
    sockets = count_sockets() - before
    dist.barrier()
    if rank == 0:
        results.put((setup, reduce, sockets))
    dist.destroy_process_group()


def count_sockets() -> int:
    """Open sockets of this process."""
    return sum(os.readlink(item).startswith("socket:") for item in Path("/proc/self/fd").iterdir() if item.is_symlink())


def main(words: list[str]) -> int:
    """Print the tables."""
    print(f"patches of {PATCH} x {PATCH}, gray; record {NpyLayout(PATCH, 1, 'uint8').stride:,} bytes; 1 GiB shards\n")
    measure_manifest(1, 1)  # imports what reading needs
    print("| patches | images | shards | manifest | read | memory |\n|---|---|---|---|---|---|")
    for patches, images in ((10**6, 10**3), (10**8, 10**5), (10**9, 10**6)):
        print(measure_manifest(patches, images))
    print(f"\nglobal batch {GLOBAL_BATCH:,}, a rank of {RANKS:,}\n")
    print("| patches | shards | order's memory | first step | any step |\n|---|---|---|---|---|")
    for patches in (10**6, 10**8, 10**9):
        print(measure_order(patches))
    print(f"\n{measure_opening()}\n")
    print("| ranks on this machine | set-up | all_reduce of one number | sockets of a rank |\n|---|---|---|---|")
    for count in (4, 16, 64, 128):
        print(measure_ranks(count))
    return 0


if __name__ == "__main__":
    benchmark(main)
