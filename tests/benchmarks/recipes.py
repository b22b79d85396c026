"""Variants tried for the preset `fast`, each changing one setting, and the cost of a step.

    python -m tests.benchmarks.recipes                 # everything, about an hour on 2 cores
    python -m tests.benchmarks.recipes step            # cost of a step, about two minutes
    python -m tests.benchmarks.recipes depth=3 SGD     # only variants whose names contain one of these words

It prints the tables in docs/training.md. Every variant trains on two new sets of synthetic images and is scored on 50
held-out full images; variants with a different batch size see as many samples as `fast`.
"""

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.cases import benchmark
from tests.benchmarks.train import AS_THE_JOB, SEEDS, bare, make_set, quick_precision, train_and_score

VARIANTS = {
    "fast": "",
    "rate 3e-3": "--optim.lr 3e-3",
    "rate 1.2e-2": "--optim.lr 1.2e-2",
    "cosine with warm-up": "--optim.schedule cosine --optim.warmup 0.1",
    "SGD, one-cycle, 0.1": "--optim.optimizer sgd --optim.lr 0.1 --optim.weight-decay 5e-4",
    "SGD, Nesterov, one-cycle, 0.3": "--optim.optimizer sgd --optim.nesterov --optim.lr 0.3 --optim.weight-decay 5e-4",
    "EMA 0.98": "--optim.ema-decay 0.98",
    "cross entropy + Dice": "--loss.name cross_entropy+dice",
    "focal loss": "--loss.name focal",
    "class weights": "--loss.class-weights median_frequency",
    "group norm": "--model.norm group",
    "instance norm": "--model.norm instance",
    "bilinear": "--model.upsampling bilinear",
    "width=8": "--model.width 8",
    "width=24": "--model.width 24",
    "depth=3": "--model.depth 3",
    "depth=5": "--model.depth 5",
    "batch=8, twice the steps": "-b 8 --steps 1200",
    "batch=32, half the steps": "-b 32 --steps 300",
    "turned by 90°": "--augment.rotate90",
    "patches of 128": "",
    "half the patches on a class": "",
}
"""Options of `segdist train` in addition to the preset `fast`, by name."""
SETS = {
    "patches of 128": "--patches.size 128",
    "half the patches on a class": "--patches.balance 0.5",
}
"""Options of `segdist make-shards` for variants with different patches."""

STEP_COSTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("bilinear, NCHW, fp32: torch by itself", {}),
    ("the same, optimizer foreach", {"implementation": "foreach"}),
    ("the same, optimizer for-loop", {"implementation": "for-loop"}),
    ("the same, malloc keeps freed blocks", {"keep_freed": True}),
    ("the same, compiled", {"compiled": True, "keep_freed": True}),
    ("bilinear, NHWC", AS_THE_JOB),
    ("bilinear, NHWC, compiled", AS_THE_JOB | {"compiled": True}),
    ("bilinear, NHWC, bf16", AS_THE_JOB | {"bf16": True}),
    ("transposed, NHWC", AS_THE_JOB | {"upsampling": "transposed"}),
    ("transposed, NHWC, bf16", AS_THE_JOB | {"bf16": True, "upsampling": "transposed"}),
)
"""Descriptions and options of the bare loop."""
BOUND = {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}


def step_costs(rounds: int = 3, steps: int = 20) -> None:
    """Cost of a step with 16 patches on two threads: the minimum over rounds."""
    cases: list[tuple[str, dict[str, Any], dict[str, str]]] = [(name, options, {}) for name, options in STEP_COSTS]
    cases.append(("bilinear, NHWC, threads bound to cores", AS_THE_JOB, BOUND))
    print("| model, layout, precision | s / step |\n|---|---|")
    turns = [[bare(steps, options, environ) for _, options, environ in cases] for _ in range(rounds)]
    for (name, _, _), seconds in zip(cases, zip(*turns, strict=True), strict=True):
        print(f"| {name} | {min(seconds):.3f} |")


def scores(folder: Path, chosen: list[str]) -> None:
    """Train and score the chosen variants on each set."""
    print(f"| change | time | {' | '.join(f'seed {seed}' for seed in SEEDS[:2])} | mean |\n|---|---|---|---|---|")
    unit = 0.0
    for variant in chosen:
        rows = [_train(folder, variant, seed) for seed in SEEDS[:2]]
        seconds, found = (sum(column) / len(rows) for column in zip(*rows, strict=True))
        unit = unit or seconds
        print(f"| {variant} | {seconds / unit:.2f} | {' | '.join(f'{row[1]:.4f}' for row in rows)} | {found:.4f} |")


def _train(folder: Path, variant: str, seed: int) -> tuple[float, float]:
    """Seconds and score of a variant."""
    options = SETS.get(variant, "").split()
    data = _folder_name(f"seed{seed}{' '.join(options)}")
    if not (folder / "data" / data).exists():
        make_set(folder, data, *options, seed=seed, test=50)
    recipe = ("--preset", "fast", *quick_precision(), "--seed", str(seed), *VARIANTS[variant].split())
    return train_and_score(folder, data, _folder_name(f"{variant} {seed}"), *recipe)


def _folder_name(text: str) -> str:
    return re.sub("[^a-z0-9]+", "-", text.lower())


def main(words: list[str]) -> int:
    """Print the tables selected by `words`."""
    chosen = [variant for variant in VARIANTS if not words or any(word in variant for word in words)]
    if words and not chosen and words != ["step"]:
        print(f"error: {' '.join(words)}: choose step or words of: {'; '.join(VARIANTS)}", file=sys.stderr)
        return 2
    if not words or "step" in words:
        step_costs()
    if chosen:
        with tempfile.TemporaryDirectory() as folder:
            scores(Path(folder), chosen)
    return 0


if __name__ == "__main__":
    benchmark(main)
