"""What tile side, overlap and blending give and cost: full-image mean IoU against work, as a table and a plot.

    python tests/benchmarks/frontier.py RUN SHARD_SET [docs/inference-frontier.png]

Cost is the number of pixels that go through the network per pixel of the image, which doesn't depend on the machine;
seconds are printed beside it.
"""

import sys
import time
from pathlib import Path
from typing import Any, get_args

import torch

from segdist import Predictor
from segdist.metrics import confusion_matrix, mean_iou
from segdist.tiling import Blending, make_grid
from shards.files import whole_file
from shards.images import open_image
from shards.manifest import read_manifest
from shards.masks import mask_reader_from_recipe

TILES = (96, 128, 192, 256)
OVERLAPS = (0.0, 0.25, 0.5, 0.75)


def measure(run: Path, shard_set: Path) -> list[dict[str, Any]]:
    """A row for each combination."""
    manifest = read_manifest(shard_set)
    reader = mask_reader_from_recipe(manifest.recipe)
    pairs = []
    for source in manifest.sources["test"]:
        with open_image(shard_set / source.image) as image:
            pairs.append((image.read(0, image.height), torch.from_numpy(reader.read(shard_set / str(source.mask)))))
    pixels = sum(truth.numel() for _, truth in pairs)
    rows = []
    for tile in TILES:
        for overlap in OVERLAPS:
            # Without overlap there is nothing to blend.
            for blending in get_args(Blending) if overlap else ("mean",):
                predictor = Predictor(run, tile=tile, overlap=overlap, blending=blending, device="cpu")
                start = time.perf_counter()
                predictions = [torch.from_numpy(predictor.labels(image)) for image, _ in pairs]
                seconds = time.perf_counter() - start
                scores = [
                    mean_iou(confusion_matrix(truth, labels, len(manifest.classes)))
                    for labels, (_, truth) in zip(predictions, pairs, strict=True)
                ]
                shapes = [truth.shape for _, truth in pairs]
                tiles = sum(make_grid(height, width, tile, overlap, 1).tiles for height, width in shapes)
                row = {
                    "tile": tile,
                    "overlap": overlap,
                    "blending": blending,
                    "cost": tiles * tile * tile / pixels,
                    "seconds": seconds,
                    "mean_iou": sum(scores) / len(scores),
                }
                rows.append(row)
                print(table_line(row), flush=True)
    return rows


def table_line(row: dict[str, Any]) -> str:
    """A row of a Markdown table."""
    return (
        f"| {row['tile']} | {row['overlap']:.0%} | {row['blending']} | {row['cost']:.2f} | {row['seconds']:.1f} | "
        f"{row['mean_iou']:.4f} |"
    )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Score over cost, a colour per tile side and a marker per blending."""
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


def main(run: str, shard_set: str, picture: str = "docs/inference-frontier.png") -> None:
    """Print the table, draw the plot."""
    print("| tile | overlap | blending | cost | seconds | mean IoU |\n|---|---|---|---|---|---|")
    plot(measure(Path(run), Path(shard_set)), Path(picture))


if __name__ == "__main__":
    main(*sys.argv[1:])
