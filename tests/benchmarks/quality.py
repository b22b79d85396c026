"""Model quality after a given training time on real images, for any recipe and any folder of labeled sets.

    python -m tests.benchmarks.quality FOLDER                          # fast and auto, 1,000 reference steps
    python -m tests.benchmarks.quality FOLDER --budget 4000 --seeds 0 1 2
    python -m tests.benchmarks.quality FOLDER --part choose --recipes fast wide --recipe-file mine.toml
    python -m tests.benchmarks.quality FOLDER --part choose --recipes random-1 random-2 random-3

FOLDER is a set (`tests.benchmarks.quality_sets`) or contains several. `--part choose` scores some of the training
images instead of the test images. Recipes are described in `tests.benchmarks.quality_recipes`. Finished rows are kept
in `--rows`; another run measures only what is missing and prints one table of everything requested.

Budgets are in reference steps: forward, backward and optimizer step in plain torch on a width-16 U-Net with 16 patches
of 96 x 96 pixels. Everything runs in one thread, one process at a time, and is measured in CPU time (user and system)
instead of wall time, to reduce the effect of other work; memory and caches are still shared. A reference step is timed
before each row. Two short runs of the command determine how many steps fit into the budget, which covers all of
`segdist train` from process start to end.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from segdist.core.code_version import current_version
from tests.benchmarks.bars import Bars
from tests.benchmarks.cases import ROOT, benchmark, case_result, print_result, start_case
from tests.benchmarks.quality_recipes import Recipe, read_recipes, recipe_of
from tests.benchmarks.quality_rows import Row, append_row, leave_one_out, medians, read_rows, table
from tests.benchmarks.quality_sets import LabeledSet, Part, find_sets

REFERENCE_STEPS = 10
TRIALS = (4, 16)
"""Numbers of steps of the two short runs."""
PEER = "nnunet"
"""Recipe name for another tool's rows in the file, used by the bars."""


@dataclass(frozen=True)
class QualityConfig:
    """What to measure."""

    sets: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Sets, or folders that contain sets."""
    recipes: tuple[str, ...] = ("fast", "auto")
    """Recipe names; errors in the table are relative to the first."""
    recipe_file: Path | None = None
    """TOML file with additional recipes."""
    budget: float = 1000
    """Budget in reference steps."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; the table shows medians over them."""
    part: Part = "test"
    """Which images are scored."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """Precision of training and inference; each has its own rows."""
    rows: Path = Path("quality.jsonl")
    """File with finished rows."""
    work: Path = Path("quality-work")
    """Folder for shard sets and runs; can be deleted afterwards."""


def command(work: Path, *arguments: str) -> float:
    """Run `segdist …` in `work`; return CPU seconds. Raises SystemExit with the output on failure."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    work.mkdir(parents=True, exist_ok=True)
    with (work / "output.txt").open("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", *arguments], cwd=work, env=environ, stdout=output, stderr=output
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"segdist {shlex.join(arguments)} failed:\n{output.read()}")
    return used.ru_utime + used.ru_stime


def reference_step() -> float:
    """CPU seconds of a reference step, in a separate process."""
    return float(case_result(start_case("quality", "reference", environ={"OMP_NUM_THREADS": "1"}))["seconds"])


def measure(recipe: Recipe, labeled: LabeledSet, seed: int, config: QualityConfig) -> Row:
    """Build the set, train for the budget, segment and score the held-out images."""
    work = (config.work / labeled.name / config.part).resolve()
    data = f"shards-{_digest(recipe.shards)}"
    if not (work / "data" / data / "manifest.json").exists():
        where = labeled.shard_options(config.part, work)
        command(work, "make-shards", "-f", data, *where, "--processes", "1", *shlex.split(recipe.shards))
    reference = reference_step()
    name = f"{_digest(recipe.name + recipe.train)}-{config.budget:g}-{seed}-{config.precision}"
    minutes = config.budget * reference / 60
    train = [
        *("train", "-f", data, "--threads", "1", "--device", "cpu", "--precision", config.precision, "--quiet"),
        *("--seed", str(seed), "--tracking.wandb", "off"),
        *shlex.split(recipe.train.format(minutes=f"{minutes:.3g}")),
    ]
    few, more = (command(work, *train, "-n", f"{name}-{_fresh()}", "--steps", str(steps)) for steps in TRIALS)
    a_step = (more - few) / (TRIALS[1] - TRIALS[0])
    start = max(few - TRIALS[0] * a_step, 0.0)
    steps = max(int((config.budget * reference - start) / max(a_step, 1e-6)), 1)
    run = f"{name}-{_fresh()}"
    spent = command(work, *train, "-n", run, "--steps", str(steps))
    command(
        *(work, "infer", "-m", run, "-f", data, "--threads", "1", "--device", "cpu", "--precision", config.precision),
        *("--quiet", "--output.figures", "0", "--output.no-previews", "--tracking.wandb", "off"),
        *shlex.split(recipe.infer),
    )
    scores = json.loads((work / "runs" / run / "predictions" / data / "scores.json").read_text())
    return Row(
        *(recipe.name, labeled.name, config.part, config.budget, seed, config.precision),
        mean_iou=scores["mean_iou_pixels"],
        iou=tuple(scores["iou"]),
        mean_iou_over_images=scores["mean_iou_over_images"],
        steps=steps,
        cpu_seconds=round(spent, 2),
        reference=round(reference, 4),
        options=(recipe.shards, recipe.train, recipe.infer),
        version=str(current_version()),
    )


def bars(rows: list[Row], sets: list[str]) -> Bars:
    """Bars that the rows allow: `auto` compared with another tool and with `fast`."""
    scores, found = medians(rows), Bars()
    for name in sets:
        ours = scores.get(("auto", name))
        if ours is None:
            continue
        if (PEER, name) in scores:
            found.at_least(f"{name}: mean IoU of auto - that of {PEER}", ours - scores[PEER, name], 0)
        if ("fast", name) in scores:
            ratio = (1 - ours) / max(1 - scores["fast", name], 1e-9)
            found.at_most(f"{name}: error of auto / that of fast", ratio, 0.85)
    return found


def main(arguments: list[str]) -> int:
    """Measure missing rows and print the table; return the exit code, 1 if a bar is missed."""
    if arguments == ["case", "reference"]:
        from tests.benchmarks.bare_loop import bare_loop

        run = bare_loop(1)
        began = time.process_time()
        run(REFERENCE_STEPS)
        print_result({"seconds": (time.process_time() - began) / REFERENCE_STEPS})
        return 0
    config = tyro.cli(
        QualityConfig, args=arguments, prog="python -m tests.benchmarks.quality", description=__doc__ or ""
    )
    own, sets = read_recipes(config.recipe_file), find_sets(list(config.sets))
    wanted = set()
    for seed in config.seeds:
        for labeled in sets:
            for name in config.recipes:
                recipe = recipe_of(name, labeled.name, own)
                key = (name, labeled.name, config.part, config.budget, seed, config.precision)
                wanted.add(key)
                if key in {row.key for row in read_rows(config.rows)}:
                    continue
                row = measure(recipe, labeled, seed, config)
                append_row(config.rows, row)
                print(
                    f"  {name} on {labeled.name}, seed {seed}: {row.mean_iou:.4f} after {row.steps} steps, "
                    f"{row.spent:.0f} reference steps of {row.reference:.3f} s"
                )
    peers = {(PEER, labeled.name) for labeled in sets}
    rows = [row for row in read_rows(config.rows) if row.key in wanted or (row.recipe, row.set) in peers]
    order = {name: place for place, name in enumerate(config.recipes)}
    rows.sort(key=lambda row: order.get(row.recipe, len(order)))
    print(*table(rows), *leave_one_out(rows), sep="\n")
    return bars(rows, [labeled.name for labeled in sets]).finish()


def _digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _fresh() -> str:
    """An unused run name. Interrupted runs are not resumed, since the time already spent would not count."""
    return f"{time.time_ns():x}"


if __name__ == "__main__":
    benchmark(main)
