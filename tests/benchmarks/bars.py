"""The bars of every benchmark: a line for each as soon as it is measured, all of them at the end, the exit code."""

from dataclasses import dataclass, field


@dataclass
class Bars:
    """Figures beside their targets, in the order in which they were measured."""

    lines: list[str] = field(default_factory=list)
    short: int = 0

    def at_least(self, name: str, figure: float, target: float) -> None:
        """A bar that is met by `figure` >= `target`."""
        self._add(name, figure, target, "at least", figure >= target)

    def at_most(self, name: str, figure: float, target: float) -> None:
        """A bar that is met by `figure` <= `target`."""
        self._add(name, figure, target, "at most", figure <= target)

    def finish(self) -> int:
        """Print every bar once more, together; the exit code: 1 if one is short."""
        print()
        print("\n".join(self.lines))
        return int(self.short > 0)

    def _add(self, name: str, figure: float, target: float, side: str, met: bool) -> None:
        line = f"bar: {name} = {figure:.4g} (target {side} {target:g}) {'met' if met else 'short'}"
        print(line, flush=True)
        self.lines.append(line)
        self.short += not met
