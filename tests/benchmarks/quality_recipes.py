"""Recipes of the quality benchmark: options of the three commands, by name.

Add recipes in a TOML file, one table each:

    ["half size"]
    shards = "--patches.size 128"
    train = "--preset fast --loss.name cross_entropy+dice"
    infer = "--flips"
"""

import random
import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Recipe:
    """Options of make-shards, train and infer; `{minutes}` in the train options is the budget in minutes."""

    name: str
    shards: str = ""
    train: str = ""
    infer: str = ""


BEFORE = "--patches.balance 0 --split.validation 0.1 --images.upright no"
"""The defaults of make-shards before it made choices."""
BUILT_IN = {
    "auto": Recipe("auto", train="--minutes {minutes}"),
    "fast": Recipe("fast", f"--patches.size 96 --patches.per-image 20 --patches.scale 1 {BEFORE}", "--preset fast"),
}
RANDOM = "random"
"""`random-1`, `random-2` …: random configurations, different for each set."""


def recipe_of(name: str, set_name: str, own: dict[str, Recipe]) -> Recipe:
    """The recipe `name` for a set. Raises SystemExit for an unknown name."""
    if name in own:
        return own[name]
    if name in BUILT_IN:
        return BUILT_IN[name]
    kind, _, number = name.rpartition("-")
    if kind == RANDOM and number.isdecimal():
        return drawn_recipe(set_name, int(number))
    known = ", ".join([*own, *BUILT_IN, f"{RANDOM}-1", f"{RANDOM}-2 …"])
    raise SystemExit(f"error: recipe {name!r}: choose from {known}")


def read_recipes(path: Path | None) -> dict[str, Recipe]:
    """Read the recipes in a TOML file."""
    tables = tomllib.loads(path.read_text()) if path else {}
    return {name: Recipe(name, **table) for name, table in tables.items()}


def drawn_recipe(set_name: str, number: int) -> Recipe:
    """A random configuration for this set: patch, scale, width, loss, rate, augmentation."""
    draw = random.Random(f"{set_name} {number}")
    shards = f"--patches.size {draw.choice((64, 96, 128, 192, 256))} --patches.scale {draw.choice((1, 1, 2, 4))}"
    train = [
        f"--model.width {draw.choice((8, 16, 24, 32))}",
        f"--loss.name {draw.choice(('cross_entropy', 'cross_entropy+dice', 'dice', 'focal'))}",
        f"--optim.lr {10 ** draw.uniform(-3.3, -1.7):.2g}",
        *draw.choice(
            (
                (),
                ("--augment.rotate90",),
                ("--augment.brightness 0.1", "--augment.contrast 0.25", "--augment.gamma 0.25"),
                ("--augment.rotate 15", "--augment.scale 0.25", "--augment.contrast 0.25", "--augment.noise 0.02"),
                ("--augment.rotate 180", "--augment.scale 0.4", "--augment.elastic 3", "--augment.contrast 0.4"),
            )
        ),
    ]
    return Recipe(f"{RANDOM}-{number}", f"--patches.per-image 20 {shards} {BEFORE}", "--preset fast " + " ".join(train))
