"""Tiled inference compared with MONAI's sliding_window_inference: time, memory, overhead, scaling over ranks.

    python -m tests.benchmarks.inference            # bars 1 to 4, about 35 minutes on 2 cores
    python -m tests.benchmarks.inference 1 3        # only bars 1 and 3
    python -m tests.benchmarks.inference 4          # two ranks, 11 rounds, about 25 minutes
    python -m tests.benchmarks.inference ensemble   # five models compared with one
    python -m tests.benchmarks.inference gigapixel  # a 32768 x 32768 image, end to end
    python -m tests.benchmarks.inference finished   # a restart when a million images are finished; --count N for fewer

Every case runs in its own process. MONAI gets the same network, tiles, overlap and batch, and a normalized float tensor
prepared before timing starts. Both use NHWC weights and malloc settings that keep freed blocks. "MONAI as it comes" has
neither; it is shown for information only.

Memory is the increase of anonymous memory (RssAnon) during inference, sampled from outside. In bar 1, the network has
already run on some batches, so that its own memory counts for neither, and both write into an existing mask. Bar 1
needs MONAI (`pip install --no-deps monai`).
"""

import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from segdist.inference.grid import make_grid
from tests.benchmarks.bars import Bars, print_noise
from tests.benchmarks.cases import benchmark, case_result, start_case
from tests.benchmarks.finished_images import MILLION, case_finished, generated_images, write_results

TILE, OVERLAP, BATCH, CLASSES = 96, 0.5, 16, 3
MEAN, STD = (128.0,), (60.0,)
WARM_UP = 20


def pointwise(in_channels: int, classes: int) -> Any:
    """A network of one 1 x 1 convolution, which leaves only the tiler's cost."""
    from torch import nn

    return nn.Conv2d(in_channels, classes, 1)


def build(name: str) -> Any:
    """The network of a case, with fixed random weights."""
    import torch

    from segdist.model.unet import UNet

    torch.manual_seed(0)
    return (UNet(1, CLASSES, width=16) if name == "unet" else pointwise(1, CLASSES)).eval()


def warm_up(model: Any) -> None:
    """Run batches through the network until malloc holds the memory it needs."""
    import torch

    with torch.inference_mode():
        for _ in range(WARM_UP):
            torch.softmax(model(torch.zeros(BATCH, 1, TILE, TILE)), 1)


# ---- cases: each runs in its own process and prints one JSON line


def case_ours(net: str, height: int, width: int, repeat: int) -> dict[str, Any]:
    """Image in memory to mask in memory with segdist; also the time inside the network.

    "network" ends at class probabilities, which MONAI gets as its network's output; "forward" ends at the logits.
    """
    from segdist import Predictor
    from segdist.ranks.allocator import keep_freed_memory

    keep_freed_memory()
    image, mask = picture(height, width), np.full((height, width), 255, np.uint8)
    inside = {"network": 0.0, "forward": 0.0}

    def timed(function: Any, name: str) -> Any:
        def call(tiles: Any) -> Any:
            start = time.perf_counter()
            result = function(tiles)
            inside[name] += time.perf_counter() - start
            return result

        return call

    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), net)
        options: dict[str, Any] = {"tile": TILE, "overlap": OVERLAP, "batch_size": BATCH}
        predictor = Predictor(folder, device="cpu", trust_factory=__spec__.name, **options)
    tile_model: Any = predictor.model
    warm_up(tile_model.model)
    tile_model.probabilities = timed(tile_model.probabilities, "network")
    tile_model.model.forward = timed(tile_model.model.forward, "forward")
    result = measured(lambda: predictor.labels(image, out=mask), repeat)
    return result | {name: seconds / repeat for name, seconds in inside.items()}


def case_monai(net: str, height: int, width: int, repeat: int, prepared: int = 1) -> dict[str, Any]:
    """The same with MONAI: sliding_window_inference of the probabilities, then argmax."""
    import torch
    from monai.inferers import sliding_window_inference

    from segdist.ranks.allocator import keep_freed_memory

    model = build(net)
    mask = np.full((height, width), 255, np.uint8)
    if prepared:
        keep_freed_memory()
        model.to(memory_format=torch.channels_last)
    pixels = (torch.from_numpy(picture(height, width)).float() - MEAN[0]) / STD[0]
    pixels = pixels[None, None]
    warm_up(model)

    def run() -> None:
        with torch.inference_mode():
            probabilities = sliding_window_inference(
                pixels, (TILE, TILE), BATCH, lambda tiles: torch.softmax(model(tiles), 1), OVERLAP, mode="constant"
            )
            torch.from_numpy(mask).copy_(probabilities.argmax(dim=1)[0])

    return measured(run, repeat)


def case_file(folder: str, height: int, width: int, repeat: int) -> dict[str, Any]:
    """`segdist infer` on a tiled TIFF file, including the mask: reading by window, parts, final file."""
    image = Path(folder) / f"{height}x{width}.tif"
    write_tiff(image, height, width)
    config = job_config(Path(folder), image, Path(folder) / "out")
    from segdist.inference.job import infer
    from segdist.ranks.process_group import ranks

    with ranks("cpu") as these:
        return measured(lambda: infer(config, these), 1) | {"pixels": height * width}


def case_ranks(folder: str, mode: str) -> dict[str, Any]:
    """One of two ranks: "together" on one image, separately on "halves" at the same time, or together but "seamless".

    The last leaves out the tile row above the seam. The result there is wrong, but it shows the most that passing on
    partial sums could save.
    """
    from segdist.inference import enlarge, tiler
    from segdist.inference.job import infer
    from segdist.ranks.launchers import RankEnvironment
    from segdist.ranks.process_group import Ranks, ranks

    if mode == "seamless":
        finished_rows = tiler.finished_rows

        def without_halo(model: Any, read: Any, grid: Any, *rest: Any) -> Any:
            grid.rows.__dict__["depth"] = 1  # a cached property: only for this grid
            return finished_rows(model, read, grid, *rest)

        vars(enlarge)["finished_rows"] = without_halo
    with ranks("cpu", threads=1) as these:
        alone = Ranks(RankEnvironment("single"), these.device)
        if mode != "halves":
            config, own = job_config(Path(folder), Path(folder) / "whole.png", Path(folder) / mode, 1), these
        else:
            name = f"half{these.rank}"
            config, own = job_config(Path(folder), Path(folder) / f"{name}.png", Path(folder) / name, 1), alone
        these.barrier()
        result = measured(lambda: infer(config, own), 1)
        these.barrier()
    return result


def case_one(folder: str) -> dict[str, Any]:
    """One rank of one thread on the whole image."""
    from segdist.inference.job import infer
    from segdist.ranks.process_group import ranks

    config = job_config(Path(folder), Path(folder) / "whole.png", Path(folder) / "one", 1)
    with ranks("cpu", threads=1) as these:
        return measured(lambda: infer(config, these), 1)


def case_ensemble(folder: str, models: int) -> dict[str, Any]:
    """Image in memory to mask in memory with the first `models` models of a folder; also the size of their weights."""
    from segdist import Predictor

    files = [Path(folder) / str(number) / "best.safetensors" for number in range(models)]
    predictor, image = Predictor(files, device="cpu", tile=TILE, overlap=OVERLAP, batch_size=BATCH), picture(1024, 1024)
    predictor.labels(image[:256, :256])
    weights = sum(file.stat().st_size for file in files)
    return measured(lambda: predictor.labels(image), 3) | {"weights": weights, "total": anonymous(os.getpid())}


def measured(run: Any, repeat: int) -> dict[str, Any]:
    """Call `run` `repeat` times; marks tell the parent which memory samples count."""
    seconds, begin, cpu = [], time.monotonic(), time.process_time()
    before = anonymous(os.getpid())
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    cpu = (time.process_time() - cpu) / repeat
    marks = {"before": before, "begin": begin, "end": time.monotonic()}
    return {"seconds": statistics.median(seconds), "cpu": cpu, **marks}


def picture(height: int, width: int) -> np.ndarray:
    """Noise, uint8 (H, W)."""
    return np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)


def write_tiff(path: Path, height: int, width: int) -> None:
    """Write a tiled TIFF of noise without holding it in memory."""
    import tifffile

    tile = np.random.default_rng(0).integers(0, 256, (512, 512), dtype=np.uint8)
    count = -(-height // 512) * -(-width // 512)
    with tifffile.TiffWriter(path, bigtiff=height * width > 2**31) as tiff:
        tiff.write((tile for _ in range(count)), shape=(height, width), dtype=np.uint8, tile=(512, 512), metadata=None)


def job_config(folder: Path, image: Path, out: Path, threads: int = 0) -> Any:
    """A job on one image with the model in `folder`."""
    from segdist.inference.config import InferConfig, OutputConfig

    output = OutputConfig(figures=0, previews=False)
    return InferConfig(
        model=(str(folder),),
        images=(str(image),),
        out=str(out),
        device="cpu",
        threads=threads,
        quiet=True,
        output=output,
    )


def write_model(folder: Path, net: str) -> None:
    """Save the network as a model file."""
    from segdist.model.card import ModelCard
    from segdist.model.config import ModelConfig
    from segdist.model.model_file import save_model
    from shards.manifest import ClassInfo

    model = build(net)
    config = ModelConfig(width=16) if net == "unet" else ModelConfig(factory="tests.benchmarks.inference:pointwise")
    classes = tuple(ClassInfo(f"class{label}", (90 * label, 90, 90)) for label in range(CLASSES))
    multiple = 16 if net == "unet" else 1
    card = ModelCard(config, classes, 1, "uint8", TILE, MEAN, STD, multiple)
    save_model(folder / "best.safetensors", model.state_dict(), card)


# ---- the parent process: starts cases, samples their memory, prints the table


def anonymous(pid: int) -> int:
    """Anonymous memory of a process in bytes; 0 if it has exited."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def run_case(name: str, *values: Any) -> dict[str, Any]:
    """Run a case to its end; add `peak`, the extra anonymous memory in MB."""
    process = start_case("inference", name, *values)
    samples = []
    while process.poll() is None:
        samples.append((time.monotonic(), anonymous(process.pid)))
        time.sleep(0.004)
    result = case_result(process)
    inside = [memory for moment, memory in samples if result["begin"] <= moment <= result["end"]]
    return result | {"peak": (max(inside, default=result["before"]) - result["before"]) / 1e6}


def bars_1_and_3(bars: Bars) -> None:
    """Time and memory compared with MONAI, and time outside the model."""
    cases = (
        ("unet", 2048, 2048, 1, 0.85, 0.25),
        ("pointwise", 8192, 8192, 1, 0.75, 0.05),
        ("unet", 400, 200, 9, 0.85, None),
    )
    for net, height, width, repeat, time_bar, memory_bar in cases:
        ours = run_case("ours", net, height, width, repeat)
        peer = run_case("monai", net, height, width, repeat)
        case = f"{net} {height} x {width}"
        print(case)
        for name, result in (("segdist", ours), ("MONAI", peer)):
            print(f"  {name:<8} {result['seconds']:8.3f} s  {result['cpu']:8.3f} CPU s  {result['peak']:8.1f} MB extra")
        bars.at_most(f"{case}, time / MONAI", ours["seconds"] / peer["seconds"], time_bar)
        # More reliable if the machine is shared.
        print(f"  CPU ratio    {ours['cpu'] / peer['cpu']:.3f}")
        if net == "unet":
            plain = run_case("monai", net, height, width, repeat, 0)
            print(f"  MONAI as it comes {plain['seconds']:.3f} s, ratio {ours['seconds'] / plain['seconds']:.3f}")
        if memory_bar is not None:
            bars.at_most(f"{case}, memory / MONAI", ours["peak"] / peer["peak"], memory_bar)
            mask = height * width / 1e6
            print(f"  memory ratio with the mask itself counted {(ours['peak'] + mask) / (peer['peak'] + mask):.3f}")
        if net == "unet" and repeat == 1:
            network, forward = (1 - ours[name] / ours["seconds"] for name in ("network", "forward"))
            bars.at_most(f"{case}, share of time outside the model", network, 0.02)
            print(f"  outside the model {network:.2%}; with the softmax counted as outside {forward:.2%}")


def bar_2(bars: Bars, shapes: tuple[tuple[int, int], ...] = ((4096, 4096), (16384, 4096), (65536, 4096))) -> None:
    """Memory as the height grows, from file to file."""
    peaks = []
    for height, width in shapes:
        with tempfile.TemporaryDirectory() as folder:
            write_model(Path(folder), "pointwise")
            result = run_case("file", folder, height, width, 1)
        peaks.append(result["peak"])
        rate = result["pixels"] / 1e6 / result["seconds"]
        print(f"{height} x {width}: {result['peak']:.1f} MB extra, {result['seconds']:.1f} s, {rate:.2f} Mpx/s")
    if len(peaks) > 1:
        bars.at_most("memory, growth over the lowest", max(peaks) / min(peaks) - 1, 0.10)
    largest = "memory, MB" if len(peaks) > 1 else "memory of a gigapixel, MB"
    bars.at_most(largest, max(peaks), 150 if len(peaks) > 1 else 1000)


def bar_4(bars: Bars, side: int = 4096, rounds: int = 11) -> None:
    """Two single-threaded ranks on one image, compared in turns with two simultaneous independent runs on its halves.

    The halves run twice per round; their ratio to themselves is the noise of the measurement.
    """
    from PIL import Image

    ratios, noise, to_one = [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder, "unet")
        pixels = picture(side, side)
        Image.fromarray(pixels).save(folder / "whole.png")
        for rank in range(2):
            Image.fromarray(pixels[rank * side // 2 : (rank + 1) * side // 2]).save(folder / f"half{rank}.png")
        for number in range(rounds):
            halves, together, again = (slower_of_two(name, mode) for mode in ("halves", "together", "halves"))
            ratios.append((halves + again) / 2 / together)
            noise.append(again / halves)
            print(f"  halves {halves:.2f} s, {again:.2f} s   two ranks {together:.2f} s   ratio {ratios[-1]:.3f}")
            if number < 3:
                to_one.append(run_case("one", name)["seconds"] / together)
                shutil.rmtree(folder / "one")
        seamless = slower_of_two(name, "seamless")
    print_noise("two independent halves / themselves", noise)
    print(f"  one rank / two ranks, time: {statistics.median(to_one):.2f}")
    print(f"  without the tile row that is computed on both sides of the seam: {seamless:.2f} s")
    ideal, shares = tile_rows_of_two(side)
    print(f"  tile rows: {ideal} for each half, {shares} for the ranks; bound by them {ideal / max(shares):.3f}")
    bars.at_least("two ranks / two independent runs", statistics.median(ratios), 0.97)


def tile_rows_of_two(side: int) -> tuple[int, tuple[int, int]]:
    """Tile rows of an independent half, and those that each of two ranks computes of the whole, seam included."""
    half, whole = (make_grid(height, side, TILE, OVERLAP, BATCH).rows for height in (side // 2, side))
    upper = (whole.count + 1) // 2
    return half.count, (upper, whole.count - upper + whole.depth - 1)


def bar_ensemble(bars: Bars, models: int = 5, rounds: int = 3) -> None:
    """Time and memory of an ensemble compared with one model, measured alternately."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(models):
            write_model(Path(folder) / str(number), "unet")
        ratios, extra = [], []
        for _ in range(rounds):
            one, several = (run_case("ensemble", folder, count) for count in (1, models))
            ratios.append(several["cpu"] / one["cpu"])
            extra.append((several["total"] + several["peak"] * 1e6 - one["total"] - one["peak"] * 1e6) / 1e6)
            weights = (several["weights"] - one["weights"]) / 1e6
            print(
                f"one {one['seconds']:.2f} s, {one['cpu']:.2f} CPU s; {models} {several['seconds']:.2f} s, "
                f"{several['cpu']:.2f} CPU s; memory more {extra[-1]:.1f} MB, weights {weights:.1f} MB"
            )
    bars.at_most(f"{models} models / one, CPU time", statistics.median(ratios), 1.02 * models)
    bars.at_most("memory more / weights more", statistics.median(extra) / weights, 1.1)


def bar_finished(bars: Bars, count: int) -> None:
    """Processor time on one core to recognize finished images and write their scores."""
    with tempfile.TemporaryDirectory() as folder:
        write_results(Path(folder), generated_images(Path(folder), count))
        result = case_result(start_case("inference", "finished", folder, count))
    for name, key in (("recognize", "look"), ("write scores", "write")):
        print(f"{count} finished images, {name:<12} {result[key]:8.2f} s  {result[key + '_cpu']:8.2f} CPU s")
    print(f"memory beyond the list of images {result['mb']:.0f} MB")
    seconds = (result["look_cpu"] + result["write_cpu"]) * MILLION / count
    how = "" if count == MILLION else f" (extrapolated from {count})"
    bars.at_most(f"{MILLION} finished images{how}, CPU s", seconds, 60)


def slower_of_two(folder: str, mode: str) -> float:
    """Seconds of the slower of two ranks, which write to new folders."""
    for name in (mode, "half0", "half1"):
        shutil.rmtree(Path(folder) / name, ignore_errors=True)
    environ = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29613"}
    processes = [
        start_case("inference", "ranks", folder, mode, environ={**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    return max(float(case_result(process)["seconds"]) for process in processes)


def main(arguments: list[str]) -> int:
    """Run the named parts; return the exit code, 1 if a bar is missed."""
    if arguments[:1] == ["case"]:
        name, first, *rest = arguments[1:]
        cases = {"ours": case_ours, "monai": case_monai, "file": case_file, "ranks": case_ranks, "one": case_one}
        cases |= {"ensemble": case_ensemble, "finished": case_finished}
        values = [int(value) if value.isdecimal() else value for value in rest]
        print(json.dumps(cases[name](first, *values)))  # type: ignore[operator]
        return 0
    bars = Bars()
    wanted = arguments or ["1", "2", "4"]
    if {"1", "3"} & set(wanted):
        bars_1_and_3(bars)
    if "2" in wanted:
        bar_2(bars)
    if "4" in wanted:
        bar_4(bars)
    if "ensemble" in wanted:
        bar_ensemble(bars)
    if "gigapixel" in wanted:
        bar_2(bars, ((32768, 32768),))
    if "finished" in wanted:
        bar_finished(bars, int(wanted[wanted.index("--count") + 1]) if "--count" in wanted else MILLION)
    return bars.finish()


if __name__ == "__main__":
    benchmark(main)
