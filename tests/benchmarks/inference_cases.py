"""The cases of `tests.benchmarks.inference`: each runs in its own process and prints one JSON line."""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.cases import benchmark, print_result
from tests.benchmarks.finished_images import case_finished

MODULE = "tests.benchmarks.inference_cases"
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
        predictor = Predictor(folder, device="cpu", trust_factory=MODULE, **options)
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
    from segdist.ranks.allocator import keep_freed_memory

    keep_freed_memory()
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
        trust_factory=(MODULE,),
        output=output,
    )


def write_model(folder: Path, net: str) -> None:
    """Save the network as a model file."""
    from segdist.model.card import ModelCard
    from segdist.model.config import ModelConfig
    from segdist.model.model_file import save_model
    from shards.manifest import ClassInfo

    model = build(net)
    config = ModelConfig(width=16) if net == "unet" else ModelConfig(factory=f"{MODULE}:pointwise")
    classes = tuple(ClassInfo(f"class{label}", (90 * label, 90, 90)) for label in range(CLASSES))
    multiple = 16 if net == "unet" else 1
    card = ModelCard(config, classes, 1, "uint8", TILE, MEAN, STD, multiple)
    save_model(folder / "best.safetensors", model.state_dict(), card)


def anonymous(pid: int) -> int:
    """Anonymous memory of a process in bytes; 0 if it has exited."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def main(arguments: list[str]) -> int:
    """Run `case NAME VALUES`; print the measurements."""
    _, name, first, *rest = arguments
    cases = {"ours": case_ours, "monai": case_monai, "file": case_file, "ranks": case_ranks, "one": case_one}
    cases |= {"ensemble": case_ensemble, "finished": case_finished}
    values = [int(value) if value.isdecimal() else value for value in rest]
    print_result(cases[name](first, *values))  # type: ignore[operator]
    return 0


if __name__ == "__main__":
    benchmark(main)
