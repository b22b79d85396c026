"""Single-process jobs need nothing specific to Linux or Unix."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.programs import QUIET, TINY_NET, environment
from tests.support.sets import contents, tiny_set

ELSEWHERE = """
import builtins, ctypes, os, pathlib, sys, torch
for name in ("sched_getaffinity", "sched_setaffinity", "posix_fadvise", "getloadavg", "fork", "setsid"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("fcntl", "resource"):
    sys.modules[name] = None  # the import fails, as on Windows
whole = ctypes.CDLL
def library(name=None, *rest, **more):
    if name is None:
        raise OSError("no C library without a name here")
    return whole(name, *rest, **more)
ctypes.CDLL = library
whole_open = builtins.open
def without_proc(file, *rest, **more):
    if str(file).startswith(("/proc", "/sys")):
        raise FileNotFoundError(2, "No such file or directory", str(file))
    return whole_open(file, *rest, **more)
builtins.open = without_proc
import segdist
from jobs.cli import main
sys.exit(main(sys.argv[1:]))
"""


def elsewhere(cwd: Path, *arguments: str) -> None:
    """Run a segdist command on a simulated system without those features."""
    command = [sys.executable, "-c", ELSEWHERE, *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_set_can_be_built_trained_on_and_segmented(tmp_path: Path) -> None:
    here = tiny_set(tmp_path / "here", "synthetic")
    drawn = ["--synthetic.train", "10", "--synthetic.test", "3", "--synthetic.width", "70", "--synthetic.height", "90"]
    elsewhere(tmp_path, "make-shards", *drawn, "--patches.size", "32", "--patches.per-image", "6")
    assert contents(tmp_path / "data" / "synthetic") == contents(here)
    elsewhere(tmp_path, "train", "-f", "synthetic", "-b", "8", "--steps", "3", *TINY_NET, *QUIET)
    elsewhere(tmp_path, "infer", "--model", "runs/synthetic", "--data", "synthetic", "--wandb", "off")
    assert len(list((tmp_path / "runs" / "synthetic" / "predictions").rglob("masks/*.png"))) == 3
