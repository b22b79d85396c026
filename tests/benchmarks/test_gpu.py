"""The GPU benchmark in its tiny form, which covers all code except for CUDA and competitors' packages."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.gpu.inference import length, outside, tiles_of, union
from tests.support.programs import ROOT, run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("right", ["NO GPU HERE", "pixels that differ in a second run = 0"]),
        ("training", ["job / bare loop with flips", "model FLOPs utilization", "augmented: bare"]),
        ("inference", ["256 x 256, batches of 16: segdist", "4 of 96 x 96: segdist"]),
    ],
)
def test_the_tiny_form_runs_to_the_end(tmp_path: Path, part: str, said: list[str]) -> None:
    done = run([sys.executable, "-m", "tests.benchmarks.gpu", part, "--tiny", "--seconds", "2000"], tmp_path)
    assert "TINY FORM ON THE CPU" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    for words in said:
        assert words in done.stdout


@pytest.mark.slow
def test_cases_skipped_for_lack_of_time_are_named(tmp_path: Path) -> None:
    done = run([sys.executable, "-m", "tests.benchmarks.gpu", "training", "--tiny", "--seconds", "0"], tmp_path)
    assert "SKIPPED for lack of time: the job and the bare loop, batch   4" in done.stdout


def test_the_wheels_script_requests_pinned_versions() -> None:
    script = (ROOT / "tests" / "benchmarks" / "gpu_wheels.sh").read_text()
    names = script.split("pinned=(")[1].split(")")[0].split()
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    assert set(names) <= pinned
    subprocess.run(["bash", "-n", str(ROOT / "tests" / "benchmarks" / "gpu_wheels.sh")], check=True)


def test_overlapping_intervals_are_merged_and_subtracted() -> None:
    kernels = union([(0, 2), (1, 3), (5, 6)])
    assert kernels == [(0, 3), (5, 6)]
    assert length(kernels) == 4
    assert outside([(2, 5.5)], kernels) == [(3, 5)]
    assert outside([(0, 1), (7, 8)], kernels) == [(7, 8)]
    assert outside([(-1, 9)], kernels) == [(-1, 0), (3, 5), (6, 9)]


def test_tiles_of_an_image_are_counted() -> None:
    assert [tiles_of(side) for side in (64, 96, 97, 144, 8192)] == [1, 1, 2, 2, 170]
