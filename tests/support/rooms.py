"""The rooms (packages) of the project and the arrows (imports) between them.

`python -m tests.support.rooms` prints them.

An arrow points from the importing to the imported room. Imports inside functions count.
"""

import ast
import graphlib
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLOORS = (
    ("segdist.core",),
    ("shards",),
    ("shards.images",),
    ("shards.build", "shards.read"),
    ("segdist.model", "segdist.ranks", "segdist.tracking", "segdist.runs", "slurm"),
    ("segdist.training", "segdist.inference"),
    ("segdist",),
    ("jobs",),
)
"""From the ground up: a room imports only from lower floors, never from its own. `shards` and `segdist` mean the
modules directly in those packages."""
ROOMS = tuple(room for floor in FLOORS for room in floor)
CLOSED = {
    "slurm": {"segdist.core"},
    "shards.read": {"segdist.core", "shards"},
}
"""Rooms allowed fewer imports than their floor permits."""


def allowed(room: str) -> set[str]:
    """The rooms that `room` may import, in addition to itself."""
    floor = next(number for number, rooms in enumerate(FLOORS) if room in rooms)
    below = {other for rooms in FLOORS[:floor] for other in rooms}
    if room != "jobs":
        below.discard("slurm")
    return CLOSED.get(room, below)


def room_of(module: str) -> str:
    """The room of a module: `shards.read.order` → `shards.read`, `shards.manifest` → `shards`."""
    parts = module.split(".")
    inner = ".".join(parts[:2])
    return inner if inner in ROOMS else parts[0]


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Dotted name and file of every module; a package's name means its `__init__`."""
    found = {}
    for package in sorted({room.split(".")[0] for room in ROOMS}):
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_names(source: str) -> set[str]:
    """Dotted names of everything that a module imports, including inside functions; relative imports are refused."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError("a relative import hides which room it goes to")
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def import_graph(root: Path = ROOT) -> dict[str, set[str]]:
    """Which modules each module imports."""
    files = modules(root)
    return {module: imported_names(path.read_text()) & files.keys() - {module} for module, path in files.items()}


def arrows(graph: dict[str, set[str]]) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """For each pair of rooms (importing, imported) the pairs of modules behind it."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for module, targets in sorted(graph.items()):
        for target in sorted(targets):
            # `from shards.read import order` also names the package, which adds no information.
            if room_of(module) != room_of(target) and not any(other.startswith(f"{target}.") for other in targets):
                found[room_of(module), room_of(target)].append((module, target))
    return found


def wrong_arrows(graph: dict[str, set[str]]) -> list[str]:
    """Imports that go up or sideways, one line each."""
    return [
        f"{module} imports {target}: {source} may not import {to}"
        for (source, to), pairs in arrows(graph).items()
        if to not in allowed(source)
        for module, target in pairs
    ]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that form an import cycle, or an empty list."""
    packages = {module for module, path in modules().items() if path.name == "__init__.py"}
    try:
        graphlib.TopologicalSorter(
            {m: targets - packages for m, targets in graph.items() if m not in packages}
        ).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def picture(graph: dict[str, set[str]]) -> str:
    """The floors from the top down, with modules, lines of code and imports of each room."""
    between, files = arrows(graph), modules()
    lines = []
    for floor in reversed(FLOORS):
        for room in floor:
            inside = [path for module, path in files.items() if room_of(module) == room]
            size = sum(len(path.read_text().splitlines()) for path in inside)
            to = ", ".join(f"{other} {len(pairs)}" for (source, other), pairs in between.items() if source == room)
            lines.append(f"{room:<18}{len(inside):>3} modules {size:>6} lines  → {to or 'nothing'}")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Print rooms, arrows and problems; return 1 if there are problems."""
    graph = import_graph()
    print(picture(graph))
    problems = wrong_arrows(graph)
    if cycle := circle(graph):
        problems.append("import cycle: " + " → ".join(cycle))
    print("\n".join(problems) or "no imports go up or sideways; no cycles")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
