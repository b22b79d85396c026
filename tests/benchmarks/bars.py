"""Targets (bars) of the benchmarks: each is printed when measured, and all again at the end, with the exit code."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Bars:
    """Figures and their targets, in the order of measurement."""

    lines: list[str] = field(default_factory=list)
    short: int = 0

    def at_least(self, name: str, figure: float, target: float) -> None:
        """Add a bar that is met if `figure` >= `target`."""
        self._add(name, figure, target, "at least", figure >= target)

    def at_most(self, name: str, figure: float, target: float) -> None:
        """Add a bar that is met if `figure` <= `target`."""
        self._add(name, figure, target, "at most", figure <= target)

    def finish(self) -> int:
        """Print all bars again; return the exit code, 1 if one is missed."""
        print()
        print("\n".join(self.lines))
        return int(self.short > 0)

    def _add(self, name: str, figure: float, target: float, side: str, met: bool) -> None:
        line = f"bar: {name} = {figure:.4g} (target {side} {target:g}) {'met' if met else 'short'}"
        print(line, flush=True)
        self.lines.append(line)
        self.short += not met


def print_noise(name: str, ratios: Sequence[float]) -> None:
    """Print what a baseline gives against itself: median, lowest and highest ratio, the noise of a measurement."""
    middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
    print(f"  {name}: {middle:.3f} ({low:.3f} to {high:.3f})")
