"""Files and folders that may not be read or written end in a message, for whoever has no privileges."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from segdist.core.exit_codes import INCOMPLETE, USAGE
from tests.support.sets import add, labels, noise

ROOT = Path(__file__).parents[2]

RUN = """
import sys
from jobs import make_shards, shard_sets
from jobs.entry import run_job

jobs = {"make-shards": make_shards.main, "shards": shard_sets.main}
sys.exit(run_job(jobs[sys.argv[1]], sys.argv[2:]))
"""


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Path]:
    """A folder with labeled images."""
    for number in range(3):
        add(tmp_path, f"{number}.png", noise(number), labels())
    yield tmp_path
    for path in (tmp_path, *tmp_path.iterdir()):
        path.chmod(0o755)


def run(desk: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and output of a job that is started without the privilege to read everything."""
    plain = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*plain, sys.executable, "-c", RUN, *arguments]
    done = subprocess.run(command, cwd=desk, env=environ, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


BUILD = ("make-shards", "-f", "s", "--processes", "1", "--images.folder", "images", "--masks.folder", "masks")
SETTINGS = ("--masks.classes", "a=0", "b=255", "--patches.size", "16")


@pytest.mark.parametrize(
    ("path", "mode", "message"),
    [
        ("images/1.png", 0o000, "images/1.png: no permission to read it"),
        ("masks/1.png", 0o000, "masks/1.png: no permission to read it"),
        ("images", 0o000, "images"),
        ("images", 0o444, "images/0.png: no permission to read it"),
        ("masks", 0o000, "masks"),
        (".", 0o555, "can't be written"),
    ],
)
def test_what_may_not_be_read_is_named_when_a_set_is_made(desk: Path, path: str, mode: int, message: str) -> None:
    (desk / path).chmod(mode)
    code, shown = run(desk, *BUILD, *SETTINGS)
    assert code == USAGE
    assert "Traceback" not in shown
    assert message in shown
    if mode == 0o000:
        assert "permission" in shown


def test_a_set_that_may_not_be_read_or_written(desk: Path) -> None:
    assert run(desk, *BUILD, *SETTINGS)[0] == 0
    folder = desk / "data" / "s"

    def spoiled(path: Path, mode: int, *command: str) -> tuple[int, str]:
        before = path.stat().st_mode
        path.chmod(mode)
        try:
            return run(desk, *command)
        finally:
            path.chmod(before)

    cases: list[tuple[Path, int, str, int, str]] = [
        (folder, 0o555, "inspect", USAGE, "can't be written (Permission denied); name another file with --out"),
        (folder / "manifest.json", 0o000, "inspect", USAGE, "manifest.json: can't be read (Permission denied)"),
        (folder / "train-00000.tar", 0o000, "verify", INCOMPLETE, "train-00000.tar: can't be read"),
        (folder / "train-00000.index.npy", 0o000, "verify", INCOMPLETE, "train-00000.index.npy: can't be read"),
    ]
    for path, mode, action, wanted, message in cases:
        code, shown = spoiled(path, mode, "shards", action, "s")
        assert (code, "Traceback" in shown) == (wanted, False), shown
        assert message in shown
