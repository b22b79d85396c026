"""Inference on a GPU, TIFF to TIFF, compared with MONAI's sliding window and the network alone, and GPU utilization."""

import importlib.util
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segdist.model.unet import UNet
from tests.benchmarks.bars import Bars
from tests.benchmarks.gpu.bare import CLASSES
from tests.benchmarks.gpu.jobs import make_set, segdist, working_in
from tests.benchmarks.gpu.machine import Machine
from tests.benchmarks.gpu.right import smooth_noise

TILE, OVERLAP = 96, 0.5
QUIET = ("--wandb", "off", "--quiet")
TIFF_ONLY = ("--output.figures", 0, "--output.no-previews", "--output.mask-format", "tiff")
Interval = tuple[float, float]


def run(machine: Machine, bars: Bars) -> None:
    """The part `inference`."""
    import tifffile

    width, side, count, small = (4, 256, 4, 96) if machine.tiny else (64, 8192, 1000, 256)
    with tempfile.TemporaryDirectory() as folder, working_in(Path(folder)):
        make_set("set", TILE, images=4, per_image=20, side=200)
        segdist("train", "-f", "set", "-n", "run", "--steps", 4 if machine.tiny else 200, "--model.width", width,
                "--device", machine.device.type, "--wandb", "off", "--quiet")  # fmt: skip
        tifffile.imwrite("warm-up.tif", smooth_noise(256, 256), tile=(256, 256))
        tifffile.imwrite("big.tif", smooth_noise(side, side), tile=(256, 256))
        Path("small").mkdir()
        for number in range(count):
            tifffile.imwrite(f"small/{number:04}.tif", smooth_noise(small, small, number), tile=(small // 16 * 16,) * 2)
        print(f"  files made, {machine.spent():.0f} s")
        infer(machine, "warm-up.tif", "warm-up", 16)
        model = UNet(1, CLASSES, width=width).to(machine.device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        busy(machine, bars, side if machine.tiny else side // 2)
        small_images(machine, bars, model, 16, count, small)
        for batch in (16, 128):
            big_image(machine, bars, model, batch, side)


def infer(machine: Machine, images: str, out: str, batch: int, *options: object) -> float:
    """Seconds of `segdist infer`, start to end."""
    return segdist("infer", "-m", "run", "-i", images, "-o", out, "-b", batch, "--precision", "bf16",
                   "--device", machine.device.type, *QUIET, *TIFF_ONLY, *options)  # fmt: skip


def big_image(machine: Machine, bars: Bars, model: Any, batch: int, side: int) -> None:
    """One large image."""
    if not machine.has_time(f"the big image in batches of {batch}", 40):
        return
    megapixels = side * side / 1e6
    ours = infer(machine, "big.tif", f"big-{batch}", batch)
    again = infer(machine, "big.tif", f"big-{batch}-again", batch)
    ours = min(ours, again)
    alone = network_alone(machine, model, batch, tiles_of(side) ** 2)
    print(
        f"  {side} x {side}, batches of {batch}: segdist {ours:.2f} s, {megapixels / ours:.2f} Mpx/s, "
        f"the model alone {alone:.2f} s, {alone / ours:.3f} of it"
    )
    if importlib.util.find_spec("monai"):
        peer = min(monai(machine, model, ["big.tif"], batch) for _ in range(2))
        print(f"    MONAI {peer:.2f} s, {megapixels / peer:.2f} Mpx/s")
        bars.at_most(f"{side} x {side}, batches of {batch}: time / MONAI", ours / peer, 1.0)
    machine.free()


def small_images(machine: Machine, bars: Bars, model: Any, batch: int, count: int, side: int) -> None:
    """Many small images."""
    if not machine.has_time("many small images", 40):
        return
    megapixels = count * side * side / 1e6
    ours = infer(machine, "small", "small-out", batch)
    alone = network_alone(machine, model, batch, tiles_of(side) ** 2 * count)
    print(
        f"  {count} of {side} x {side}: segdist {ours:.2f} s, {megapixels / ours:.2f} Mpx/s, "
        f"the model alone {alone:.2f} s, {alone / ours:.3f} of it"
    )
    if importlib.util.find_spec("monai"):
        peer = monai(machine, model, [str(path) for path in sorted(Path("small").iterdir())], batch)
        print(f"    MONAI {peer:.2f} s, {megapixels / peer:.2f} Mpx/s")
        bars.at_most(f"{count} of {side} x {side}: time / MONAI", ours / peer, 1.0)


def tiles_of(side: int) -> int:
    """Tiles along a side."""
    stride = int(TILE * (1 - OVERLAP))
    return max(1, -(-(side - TILE) // stride) + 1)


@torch.inference_mode()
def network_alone(machine: Machine, model: Any, batch: int, tiles: int) -> float:
    """Seconds for the network alone on as many tiles, including class probabilities, with prepared input."""
    images = torch.randn(batch, 1, TILE, TILE, device=machine.device).contiguous(memory_format=torch.channels_last)

    def call() -> None:
        with torch.autocast(machine.device.type, torch.bfloat16):
            logits = model(images)
        torch.softmax(logits.float(), 1)

    return machine.seconds_per_call(call, at_least=1.5) * -(-tiles // batch)


@torch.inference_mode()
def monai(machine: Machine, model: Any, files: list[str], batch: int) -> float:
    """Seconds of MONAI's sliding window on image files, read and written by tifffile with segdist's compression."""
    import tifffile
    from monai.inferers import sliding_window_inference

    def network(tiles: torch.Tensor) -> torch.Tensor:
        with torch.autocast(machine.device.type, torch.bfloat16):
            logits = model(tiles.contiguous(memory_format=torch.channels_last))
        return torch.softmax(logits.float(), 1)

    began = time.perf_counter()
    out = Path(tempfile.mkdtemp(dir="."))
    for name in files:
        pixels = torch.from_numpy(tifffile.imread(name)).to(machine.device)
        pixels = ((pixels.float() - 128) / 60)[None, None]
        found: Any = sliding_window_inference(pixels, (TILE, TILE), batch, network, OVERLAP, mode="constant")
        mask = found.argmax(dim=1)[0].byte().cpu().numpy()
        tifffile.imwrite(out / Path(name).name, mask, tile=(512, 512), compression="zlib")
    return time.perf_counter() - began


def busy(machine: Machine, bars: Bars, traced: int) -> None:
    """Share of time with running kernels, and share of copies that overlap them, from a trace."""
    import tifffile
    from torch.profiler import ProfilerActivity, profile

    if not machine.has_time("a trace", 60):
        return
    tifffile.imwrite("traced.tif", smooth_noise(traced, traced), tile=(256, 256))
    for batch in (16, 128):
        plain = infer(machine, "traced.tif", f"plain-{batch}", batch)
        activities = [ProfilerActivity.CPU if machine.tiny else ProfilerActivity.CUDA]
        with profile(activities=activities) as taken:
            profiled = infer(machine, "traced.tif", f"traced-{batch}", batch)
        kernels, copies = device_intervals(taken)
        if not kernels:
            print("  no device events in the trace (the tiny form has none)")
            return
        work = union(kernels)
        span = max(end for _, end in work) - min(begin for begin, _ in work)
        hidden = 1 - length(outside(union(copies), work)) / max(length(union(copies)), 1e-12)
        print(f"  traced, {traced} x {traced}, batches of {batch}: whole job {plain:.2f} s ({profiled:.2f} s traced)")
        print(
            f"    kernels {length(work):.2f} s in a span of {span:.2f} s traced; copies {length(union(copies)):.3f} s"
        )
        print(
            f"    kernel time / span {length(work) / span:.3f}, "
            f"kernel time / whole job untraced {length(work) / plain:.3f}"
        )
        print(f"    share of copies that overlap kernels {hidden:.3f}")
        bars.at_least(f"{traced} x {traced}, batches of {batch}: kernel time / wall", length(work) / plain, 0.95)
        if len(kernels) and batch == 16:
            for name, seconds in busiest(taken):
                print(f"      {seconds:7.3f} s  {name}")


def device_intervals(taken: Any) -> tuple[list[Interval], list[Interval]]:
    """Start and end, in seconds, of kernels and host-device copies in a trace."""
    kernels, copies = [], []
    for event in taken.profiler.kineto_results.events():
        if "CUDA" not in str(event.device_type()):
            continue
        interval = (event.start_ns() / 1e9, (event.start_ns() + event.duration_ns()) / 1e9)
        name = event.name()
        if name.startswith("Memcpy") and ("HtoD" in name or "DtoH" in name):
            copies.append(interval)
        else:
            kernels.append(interval)
    return kernels, copies


def busiest(taken: Any, count: int = 12) -> list[tuple[str, float]]:
    """The most expensive kernels with their seconds."""
    totals: dict[str, float] = {}
    for event in taken.profiler.kineto_results.events():
        if "CUDA" in str(event.device_type()):
            totals[event.name()[:100]] = totals.get(event.name()[:100], 0.0) + event.duration_ns() / 1e9
    return sorted(totals.items(), key=lambda item: -item[1])[:count]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Merge intervals into sorted, disjoint ones."""
    merged: list[Interval] = []
    for begin, end in sorted(intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def outside(intervals: list[Interval], covered: list[Interval]) -> list[Interval]:
    """The parts of `intervals` outside `covered`; both must be sorted and disjoint."""
    left: list[Interval] = []
    for begin, end in intervals:
        at = begin
        for first, last in covered:
            if last <= at:
                continue
            if first >= end:
                break
            if first > at:
                left.append((at, first))
            at = max(at, last)
        if at < end:
            left.append((at, end))
    return left


def length(intervals: list[Interval]) -> float:
    """Total seconds of all intervals."""
    return float(sum(np.array([end - begin for begin, end in intervals])))
