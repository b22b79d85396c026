"""The rooms (packages) of the project, and the direction of imports between their floors."""

import ast
import re
import subprocess
import sys
from collections import Counter

import pytest

from tests.support import rooms

ROOT = rooms.ROOT
NAMED_OFTEN = {"__init__", "config"}
"""Module names shared by several rooms; every job's settings are in a `config`."""


def test_every_import_goes_to_a_lower_floor() -> None:
    assert not rooms.wrong_arrows(rooms.import_graph())


def test_there_are_no_import_cycles() -> None:
    assert not rooms.circle(rooms.import_graph())


def test_upward_and_sideways_imports_and_cycles_are_detected() -> None:
    graph = {
        "segdist.core.files": {"shards.manifest"},
        "segdist.training.trainer": {"segdist.inference.tiler"},
        "slurm.task": {"shards.manifest"},
        "segdist.ranks.stop": {"slurm.task"},
        "shards.read.order": {"shards.build.plan", "shards.read.mixing"},
        "shards.read.mixing": {"shards.read.order"},
    }
    wrong = [line.split(":")[0] for line in rooms.wrong_arrows(graph)]
    assert wrong == [
        "segdist.core.files imports shards.manifest",
        "segdist.ranks.stop imports slurm.task",
        "segdist.training.trainer imports segdist.inference.tiler",
        "shards.read.order imports shards.build.plan",
        "slurm.task imports shards.manifest",
    ]
    assert set(rooms.circle(graph)) == {"shards.read.order", "shards.read.mixing"}


def test_every_package_is_a_room() -> None:
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("*/**/__init__.py")}
    ours = {name for name in packages if name.split(".")[0] in {room.split(".")[0] for room in rooms.ROOMS}}
    assert ours == set(rooms.ROOMS)
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"} == {
        "jobs",
        "segdist",
        "shards",
        "slurm",
    }


@pytest.mark.parametrize("room", rooms.ROOMS)
def test_a_room_documents_what_it_contains(room: str) -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / room.replace(".", "/") / "__init__.py").read_text()))
    assert docstring
    assert len(docstring.splitlines()) > 2


def test_no_module_name_is_used_three_times() -> None:
    names = Counter(path.stem for path in rooms.modules().values())
    assert not {name for name, uses in names.items() if uses > 2} - NAMED_OFTEN


def test_the_ground_floor_does_not_import_torch() -> None:
    names = [module for module in rooms.modules() if rooms.room_of(module) == "segdist.core"]
    code = f"import sys, importlib; [importlib.import_module(name) for name in {names}]; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_shards_does_not_use_process_groups() -> None:
    wrong = [
        str(path)
        for path in (ROOT / "shards").rglob("*.py")
        for name in rooms.imported_names(path.read_text())
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
    assert readers == {"segdist/ranks/launchers.py"}


def test_no_job_is_named_like_another_package() -> None:
    """`python jobs/x.py` puts jobs/ first on the path, so torch's `import queue` would find a jobs/queue.py."""
    jobs = {path.stem for path in (ROOT / "jobs").glob("*.py")}
    assert not jobs & (set(sys.stdlib_module_names) | {room.split(".")[0] for room in rooms.ROOMS})


def test_a_command_prints_the_map_of_rooms() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.support.rooms"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert all(room in done.stdout for room in rooms.ROOMS)
