"""Benefit and cost of tile side, overlap and blending: full-image mean IoU against work, as a table and a plot.

    python -m tests.benchmarks.frontier RUN SHARD_SET [docs/inference-frontier.png]

docs/inference.md shows its table and plot for the run and the shard set of the demo.

Cost is the number of pixels processed by the network per image pixel, which doesn't depend on the machine; progress
lines give seconds.
"""

import itertools
import sys
import time
from pathlib import Path
from typing import Any, get_args

import torch

from segdist import Predictor
from segdist.core.files import whole_file
from segdist.inference.grid import Blending, blending_window, make_grid
from segdist.model.metrics import confusion_matrix, mean_iou
from shards.images.masks import mask_reader_from_recipe
from shards.images.opening import open_image
from shards.manifest import read_manifest
from tests.benchmarks.cases import benchmark

TILES = (96, 128, 192, 256)
OVERLAPS = (0.0, 0.25, 0.5, 0.75)


class Replayed:
    """Replays a model's probabilities, because blending comes after the model, which is almost all of the cost."""

    def __init__(self, predictor: Predictor) -> None:
        self.compute = predictor.model.probabilities
        self.batches: list[torch.Tensor] = []
        self.position = -1
        predictor.model.probabilities = self  # type: ignore[method-assign]

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        if self.position < 0:
            self.batches.append(self.compute(tiles))
            return self.batches[-1].clone()
        self.position += 1
        return self.batches[self.position - 1].clone()


def measure(run: Path, shard_set: Path) -> list[dict[str, Any]]:
    """One row per combination; progress lines give the seconds of the first blending on this machine."""
    manifest = read_manifest(shard_set)
    reader = mask_reader_from_recipe(manifest.recipe)
    pairs = []
    for source in manifest.sources["test"]:
        with open_image(shard_set / source.image) as file:
            pairs.append((file.read(0, file.height), torch.from_numpy(reader.read(shard_set / str(source.mask)))))
    rows = []
    for tile, overlap in itertools.product(TILES, OVERLAPS):
        # Without overlap, there is nothing to blend.
        blendings = get_args(Blending) if overlap else ("mean",)
        scores: dict[str, list[float]] = {blending: [] for blending in blendings}
        work, seconds = 0, 0.0
        for image, truth in pairs:
            predictor = Predictor(run, tile=tile, overlap=overlap, device="cpu")
            replayed = Replayed(predictor)
            for blending in blendings:
                predictor.window = blending_window(blending, tile)
                start = time.perf_counter()
                labels = torch.from_numpy(predictor.labels(image))
                seconds += time.perf_counter() - start if replayed.position < 0 else 0.0
                replayed.position = 0
                scores[blending].append(mean_iou(confusion_matrix(truth, labels, len(manifest.classes))))
            work += make_grid(truth.shape[0], truth.shape[1], tile, overlap, 1).tiles * tile * tile
        cost = work / sum(truth.numel() for _, truth in pairs)
        for blending, values in scores.items():
            mean = sum(values) / len(values)
            row = {
                "tile": tile,
                "overlap": overlap,
                "blending": blending,
                "cost": cost,
                "seconds": seconds,
                "mean_iou": mean,
            }
            rows.append(row)
        print(f"tile {tile}, overlap {overlap:.0%}: {seconds:.1f} s per blending", file=sys.stderr, flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Scores as a Markdown table, one line per tile side and overlap, one column per blending."""
    blendings = get_args(Blending)
    lines = [f"| tile | overlap | cost | {' | '.join(blendings)} |", "|---" * (3 + len(blendings)) + "|"]
    for tile, overlap in itertools.product(TILES, OVERLAPS):
        found = {row["blending"]: row for row in rows if (row["tile"], row["overlap"]) == (tile, overlap)}
        scores = [f"{found[name]['mean_iou']:.4f}" if name in found else "" for name in blendings]
        lines.append(f"| {tile} | {overlap * 100:.0f} % | {found['mean']['cost']:.2f} | {' | '.join(scores)} |")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot score against cost, with a color per tile side and a marker per blending."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    colors = dict(zip(TILES, ("#0072b2", "#e69f00", "#009e73", "#cc79a7"), strict=True))
    markers = {"mean": "o", "hann": "^", "gaussian": "s"}
    for tile in TILES:
        for blending, marker in markers.items():
            chosen = [row for row in rows if row["tile"] == tile and row["blending"] == blending]
            axis.plot(
                [row["cost"] for row in chosen],
                [row["mean_iou"] for row in chosen],
                color=colors[tile],
                marker=marker,
                linestyle="-" if blending == "mean" else ":",
                label=f"{tile}, {blending}",
            )
    axis.set_xscale("log", base=2)
    axis.set_xlabel("pixels through the network per image pixel")
    axis.set_ylabel("mean over images of mean IoU")
    axis.set_title("Tile side, overlap (0, 25, 50, 75 % from left to right) and blending")
    axis.grid(alpha=0.3)
    axis.legend(ncols=4, fontsize=8)
    with whole_file(path) as file:
        figure.savefig(file, format="png")


def main(words: list[str]) -> int:
    """Print the table, draw the plot."""
    if len(words) not in (2, 3):
        print("error: name a run and a shard set", file=sys.stderr)
        return 2
    run, shard_set, picture = [*words, "docs/inference-frontier.png"][:3]
    rows = measure(Path(run), Path(shard_set))
    print(table(rows))
    plot(rows, Path(picture))
    return 0


if __name__ == "__main__":
    benchmark(main)
