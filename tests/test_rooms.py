"""The rooms import in one direction: jobs → slurm, jobs → segdist → shards."""

import ast
import graphlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "jobs": {"jobs", "slurm", "segdist", "shards"},
    "segdist": {"segdist", "shards"},
    "shards": {"shards"},
    "slurm": {"slurm"},
}


def imported_modules(source: str) -> set[str]:
    """Dotted names of everything that a module imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which room they go to"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / room).rglob("*.py")
        for name in imported_modules(path.read_text())
        if name.split(".")[0] in MAY_IMPORT and name.split(".")[0] not in MAY_IMPORT[room]
    ]
    assert not wrong


def test_no_module_imports_one_that_imports_it() -> None:
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for room in MAY_IMPORT
        for path in (ROOT / room).rglob("*.py")
        if path.name != "__init__.py"
    }
    graph = {module: imported_modules(path.read_text()) & files.keys() for module, path in files.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_shards_knows_nothing_of_process_groups() -> None:
    wrong = [
        str(path)
        for path in (ROOT / "shards").rglob("*.py")
        for name in imported_modules(path.read_text())
        if name.startswith("torch.distributed")
    ]
    assert not wrong


def test_only_one_module_reads_the_launchers_variables() -> None:
    readers = {
        str(path.relative_to(ROOT))
        for room in ("segdist", "shards")
        for path in (ROOT / room).rglob("*.py")
        if re.search(r"\b(SLURM_PROCID|LOCAL_RANK|WORLD_SIZE)\b", path.read_text())
    }
    assert readers == {"segdist/distributed.py"}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_says_what_lives_in_it(room: str) -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text()))
    assert docstring
    assert len(docstring.splitlines()) > 2


def test_there_are_no_rooms_but_the_agreed_ones() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - {"tests"} == set(MAY_IMPORT)


def test_no_job_is_called_like_another_package() -> None:
    """`python jobs/x.py` puts jobs/ first on the path: a jobs/queue.py would be what torch gets for `import queue`."""
    jobs = {path.stem for path in (ROOT / "jobs").glob("*.py")}
    assert not jobs & (set(sys.stdlib_module_names) | set(MAY_IMPORT))
