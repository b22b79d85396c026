"""Rows of the quality benchmark, stored as one JSON object per line, and the statistics computed from them."""

import json
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One trained and scored model, identified by its first six fields; existing rows are not measured again.

    Results of other tools can be added to the file by hand, under their own recipe name.
    """

    recipe: str
    set: str
    part: str
    budget: float
    seed: int
    precision: str
    mean_iou: float
    """Over the pixels of all held-out images."""
    iou: tuple[float | None, ...] = ()
    mean_iou_over_images: float | None = None
    steps: int = 0
    cpu_seconds: float = 0.0
    """CPU time of the whole `segdist train` process."""
    reference: float = 0.0
    """CPU seconds of a reference step, measured just before."""
    options: tuple[str, ...] = ()
    """Options of the recipe for make-shards, train and infer."""
    version: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        return self.recipe, self.set, self.part, self.budget, self.seed, self.precision

    @property
    def spent(self) -> float:
        """Training time in reference steps."""
        return self.cpu_seconds / self.reference if self.reference else 0.0


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a file; a later row replaces an earlier one with the same key."""
    rows: dict[tuple[object, ...], Row] = {}
    known = {item.name for item in fields(Row)}
    for line in path.read_text().splitlines() if path.exists() else []:
        values = {key: value for key, value in json.loads(line).items() if key in known}
        typed: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        row = Row(**typed)
        rows[row.key] = row
    return list(rows.values())


def append_row(path: Path, row: Row) -> None:
    """Append a row to the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def medians(rows: Iterable[Row]) -> dict[tuple[str, str], float]:
    """Median over seeds of the mean IoU, by recipe and set."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        found.setdefault((row.recipe, row.set), []).append(row.mean_iou)
    return {key: statistics.median(values) for key, values in found.items()}


def table(rows: list[Row]) -> list[str]:
    """Lines of a Markdown table: one line per recipe, one column per set, and the mean error relative to the first."""
    scores = medians(rows)
    recipes, sets = list(dict.fromkeys(row.recipe for row in rows)), list(dict.fromkeys(row.set for row in rows))
    lines = [f"| recipe | {' | '.join(sets)} | error, by that of {recipes[0]} |", "|---" * (len(sets) + 2) + "|"]
    for recipe in recipes:
        cells = [f"{scores[recipe, name]:.4f}" if (recipe, name) in scores else "" for name in sets]
        ratio = error_ratio(scores, recipe, recipes[0], sets)
        lines.append(f"| {recipe} | {' | '.join(cells)} | {'' if ratio is None else f'{ratio:.3f}'} |")
    return lines


def error_ratio(scores: dict[tuple[str, str], float], recipe: str, to: str, sets: list[str]) -> float | None:
    """Ratio of (1 - mean IoU) of `recipe` to that of `to`, as a geometric mean over the sets both have."""
    ratios = [
        (1 - scores[recipe, name]) / (1 - scores[to, name])
        for name in sets
        if (recipe, name) in scores and scores.get((to, name), 1.0) < 1
    ]
    return math.prod(ratios) ** (1 / len(ratios)) if ratios else None


def leave_one_out(rows: list[Row]) -> list[str]:
    """For each set, the recipe chosen by the other sets, and its score here compared with the best."""
    scores = medians(rows)
    recipes, sets = list(dict.fromkeys(row.recipe for row in rows)), list(dict.fromkeys(row.set for row in rows))
    whole = [recipe for recipe in recipes if all((recipe, name) in scores for name in sets)]
    if len(whole) < 2 or len(sets) < 2:
        return []
    lines = []
    for left in sets:
        others = [name for name in sets if name != left]
        chosen = min(whole, key=_error_on(scores, whole[0], others))
        best = max(whole, key=lambda recipe: scores[recipe, left])
        lines.append(
            f"without {left}: {chosen} is chosen; there {scores[chosen, left]:.4f}, "
            f"the best is {best} with {scores[best, left]:.4f}"
        )
    return lines


def _error_on(scores: dict[tuple[str, str], float], to: str, sets: list[str]) -> Callable[[str], float]:
    return lambda recipe: error_ratio(scores, recipe, to, sets) or math.inf
