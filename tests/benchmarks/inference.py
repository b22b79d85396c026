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

import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from segdist.inference.grid import make_grid
from tests.benchmarks.bars import Bars, print_noise
from tests.benchmarks.cases import benchmark, case_result, start_case
from tests.benchmarks.finished_images import MILLION, generated_images, write_results
from tests.benchmarks.inference_cases import BATCH, OVERLAP, TILE, anonymous, picture, write_model


def run_case(name: str, *values: Any) -> dict[str, Any]:
    """Run a case to its end; add `peak`, the extra anonymous memory in MB."""
    process = start_case("inference_cases", name, *values)
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
        result = case_result(start_case("inference_cases", "finished", folder, count))
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
        start_case(
            "inference_cases", "ranks", folder, mode, environ={**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(2)
    ]
    return max(float(case_result(process)["seconds"]) for process in processes)


def main(arguments: list[str]) -> int:
    """Run the named parts; return the exit code, 1 if a bar is missed."""
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
