"""`--exact` compared with the default engine: step time and rounding error. Part `exact` of the training benchmark.

Both engines train with the same settings, alternately; time ratios are medians over rounds.
"""

import statistics
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from segdist.model.unet import UNet
from segdist.ranks.launchers import RankEnvironment
from segdist.ranks.process_group import Ranks
from segdist.training.config import LossConfig
from segdist.training.grid_sums import GridSums
from segdist.training.losses import Loss
from tests.benchmarks.bars import Bars

TIME_BARS = {1: 1.05, 2: 1.12}
"""Maximum time of an exact step divided by that of a default step, by number of ranks."""
SCORE_BAR = -0.003
GRAIN, GRAINS, PATCH = 4, 4, 96
LARGEST_COMPARED = 20_000
"""Number of values of each tensor summed as fractions."""

Start = Callable[..., Any]
"""`tests.benchmarks.train.start`."""


def note_parts() -> dict[str, float]:
    """Make the parts of an exact step add their seconds to the returned dictionary."""
    seconds: dict[str, float] = {}
    for part, label in (("add", "rounding"), ("reduce", "sum over ranks"), ("write", "handing out")):
        function = getattr(GridSums, part)

        def timed(self: GridSums, *values: Any, _function: Any = function, _label: str = label) -> Any:
            began = time.perf_counter()
            result = _function(self, *values)
            seconds[_label] = seconds.get(_label, 0.0) + time.perf_counter() - began
            return result

        setattr(GridSums, part, timed)
    return seconds


def step_times(folder: Path, bars: Bars, job: Callable[..., dict[str, Any]], rounds: int = 5) -> None:
    """Measure the time bars; `job(name, ranks, *options)` runs a training in `folder` and returns its measurements."""
    for width in (16, 32):
        for ranks, target in TIME_BARS.items():
            ratios = []
            for number in range(rounds):
                name = f"{width}-{ranks}-{number}"
                options = ("--model.width", width, "--threads", 2 // ranks)
                plain = job(f"plain-{name}", ranks, *options)["seconds"]
                found = job(f"exact-{name}", ranks, *options, "--exact", "--grain", GRAIN)
                ratios.append(found["seconds"] / plain)
                parts = ", ".join(f"{part} {1e3 * value:.1f}" for part, value in found["parts"].items())
                print(
                    f"  width {width}, {ranks} ranks: default {1e3 * plain:.1f} ms, exact {1e3 * found['seconds']:.1f} "
                    f"ms (ratio {ratios[-1]:.3f}); of those {parts}"
                )
            bars.at_most(f"exact step / default step, width {width}, {ranks} ranks", statistics.median(ratios), target)


def rounding_error(bars: Bars) -> None:
    """Largest error divided by the largest gradient, per tensor, of grid and float32 sums against exact fractions."""
    torch.manual_seed(0)
    model, loss = UNet(1, 3, width=16), Loss(LossConfig(), torch.ones(3))
    terms = []
    for _ in range(GRAINS):
        images = torch.randn(GRAIN, 1, PATCH, PATCH)
        truth = torch.randint(0, 3, (GRAIN, PATCH, PATCH), dtype=torch.uint8)
        model.zero_grad()
        (loss.sums(model(images), truth) / (GRAINS * truth.numel())).sum().backward()
        terms.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    sums = GridSums(terms[0], GRAINS, torch.device("cpu"))
    for _ in range(2):  # the first pass measures their magnitudes
        sums.start()
        for term in terms:
            sums.add([tensor.clone() for tensor in term])
        sums.reduce(Ranks(RankEnvironment("single"), torch.device("cpu")))
        sums.learn()
    on_grid = [torch.empty_like(tensor) for tensor in terms[0]]
    exact_sums = [torch.empty_like(tensor, dtype=torch.float64) for tensor in terms[0]]
    sums.write(on_grid)
    sums.write(exact_sums)
    pairwise = [(a + b) + (c + d) for a, b, c, d in zip(*terms, strict=True)]
    worst: dict[str, float] = {"grid": 0.0, "grid, before the last rounding": 0.0, "pairwise": 0.0}
    ratio = 0.0
    for index in range(len(on_grid)):
        rows = [term[index].flatten()[:LARGEST_COMPARED].tolist() for term in terms]
        exact = [sum(map(Fraction, values), start=Fraction(0)) for values in zip(*rows, strict=True)]
        largest = max(map(abs, exact)) or Fraction(1)

        def error(found: torch.Tensor, exact: list[Fraction] = exact, largest: Fraction = largest) -> float:
            values = found.flatten()[:LARGEST_COMPARED].tolist()
            return float(max(abs(Fraction(v) - true) for v, true in zip(values, exact, strict=True)) / largest)

        grid, plain = error(on_grid[index]), error(pairwise[index])
        ratio = max(ratio, grid / plain if plain else float(grid > 0))
        found = {"grid": grid, "pairwise": plain, "grid, before the last rounding": error(exact_sums[index])}
        worst = {name: max(value, found[name]) for name, value in worst.items()}
    print("  error / largest gradient: " + ", ".join(f"{name} {value:.2g}" for name, value in worst.items()))
    bars.at_most("rounding error of the grid / of a pairwise float32 sum, worst tensor", ratio, 1.0)
