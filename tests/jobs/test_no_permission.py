"""Files and folders without permission lead to clear messages, tested without root privileges."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from segdist.core.exit_codes import FINISHED, INCOMPLETE, USAGE
from tests.support.inference_parts import write_model
from tests.support.sets import add, labels, noise

ROOT = Path(__file__).parents[2]

# All cases run in one process. Each is a path, its mode during the command, and the command.
RUN = """
import contextlib, io, json, os, pathlib, shutil, sys
from jobs import infer, make_shards, shard_sets
from jobs.entry import run_job

jobs = {"make-shards": make_shards.main, "shards": shard_sets.main, "infer": infer.main}
answers = []
for path, mode, command in json.loads(sys.argv[1]):
    before = os.stat(path).st_mode
    os.chmod(path, mode)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        code = run_job(jobs[command[0]], command[1:])
    os.chmod(path, before)
    answers.append((code, shown.getvalue()))
print(json.dumps(answers))
"""

Case = tuple[str, int, list[str]]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Path]:
    """A folder with labeled images."""
    for number in range(3):
        add(tmp_path, f"{number}.png", noise(number), labels())
    yield tmp_path
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o755)


def run(desk: Path, cases: list[Case]) -> list[tuple[int, str]]:
    """Exit code and output of each command, run without root's file privileges."""
    plain = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    command = [*plain, sys.executable, "-c", RUN, json.dumps(cases)]
    done = subprocess.run(
        command, cwd=desk, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, stdout=subprocess.PIPE, text=True
    )
    answers: list[tuple[int, str]] = json.loads(done.stdout.splitlines()[-1])
    assert not any("Traceback" in shown for _, shown in answers), answers
    return answers


BUILD = ["make-shards", "-f", "s", "--processes", "1", "--images.folder", "images", "--masks.folder", "masks"]
BUILD += ["--masks.classes", "a=0", "b=255", "--patches.size", "16"]


def test_unreadable_or_unwritable_paths_are_named(desk: Path) -> None:
    cases = {
        ("images/1.png", 0o000): "images/1.png: no permission to read it",
        ("masks/1.png", 0o000): "masks/1.png: no permission to read it",
        ("images", 0o000): "images: this folder can't be read (Permission denied)",
        ("images", 0o444): "images/0.png: no permission to read it",
        ("masks", 0o000): "masks: this folder can't be read (Permission denied)",
        (".", 0o555): "Permission denied",
    }
    answers = run(desk, [(path, mode, BUILD) for path, mode in cases])
    for (code, shown), message in zip(answers, cases.values(), strict=True):
        assert code == USAGE
        assert message in shown


def test_an_unreadable_or_unwritable_set_is_named(desk: Path) -> None:
    cases = [
        ("data/s", 0o555, "inspect", USAGE, "can't be written (Permission denied); name another file with --out"),
        ("data/s/manifest.json", 0o000, "inspect", USAGE, "manifest.json: can't be read (Permission denied)"),
        ("data/s/train-00000.tar", 0o000, "verify", INCOMPLETE, "train-00000.tar: can't be read"),
        ("data/s/train-00000.index.npy", 0o000, "verify", INCOMPLETE, "train-00000.index.npy: can't be read"),
    ]
    assert run(desk, [(".", 0o755, BUILD)])[0][0] == FINISHED
    answers = run(desk, [(path, mode, ["shards", action, "s"]) for path, mode, action, *_ in cases])
    for (code, shown), (*_, wanted, message) in zip(answers, cases, strict=True):
        assert code == wanted
        assert message in shown


@pytest.mark.slow
def test_an_unreadable_folder_does_not_stop_infer_for_other_images(desk: Path) -> None:
    write_model(desk / "run")
    add(desk, "closed/a.png", noise(7))
    command = ["infer", "-m", "run/best.safetensors", "-i", "images", "-o", "out", "--quiet"]
    (code, shown), *_ = run(desk, [("images/closed", 0o000, command)])
    assert code == INCOMPLETE
    assert "images/closed: no permission to read it" in shown
    assert sorted(path.name for path in (desk / "out" / "masks").iterdir()) == ["0.png", "1.png", "2.png"]
