"""Finished images are remembered in a few logs: whatever cuts, damages or follows a line, only whole results count."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import infer
from jobs.entry import run_job
from segdist.core.exit_codes import FINISHED
from segdist.inference.finished_log import FORMER, LOGS, FinishedLog
from segdist.inference.finished_result import FinishedResult
from segdist.inference.result_folder import SETTINGS
from tests.support.inference_parts import (
    CLASSES,
    checksums,
    to_former_layout,
    write_images,
    write_model,
    write_truth,
)

RECORDS = {"a": {"files": {"mask": "masks/a.png"}}, 'sub/b", {"': {"files": {}}, "ö": {"files": {}}}
"""The second name looks like the end of its own string."""
WRITER = """
import os, signal, sys
from pathlib import Path
from segdist.inference.finished_log import FinishedLog
log = FinishedLog(Path(sys.argv[1]))
log.append("killed", {"files": {}})
os.kill(os.getpid(), signal.SIGKILL)
"""


def logged(state: Path) -> Path:
    """A log of `RECORDS`."""
    log = FinishedLog(state)
    for name, record in RECORDS.items():
        log.append(name, record)
    (file,) = (state / LOGS).iterdir()
    return file


def test_a_log_cut_anywhere_holds_the_lines_before_the_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = logged(tmp_path)
    content = file.read_bytes()
    for length in range(len(content) + 1):
        file.write_bytes(content[:length])
        assert list(FinishedLog(tmp_path).read()) == list(RECORDS)[: content[:length].count(b"\n")]
    assert not capsys.readouterr().err


def test_a_line_with_a_flipped_bit_is_ignored_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = logged(tmp_path)
    content = file.read_bytes()
    for place in range(content.index(b"\n")):
        for bit in (1, 16):
            file.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
            assert list(FinishedLog(tmp_path).read()) == list(RECORDS)[1:]
    assert f"{file}: 1 damaged lines are ignored" in capsys.readouterr().err


def test_the_last_line_of_an_image_counts_also_over_several_starts(tmp_path: Path) -> None:
    for start in range(12):  # more than one digit
        log = FinishedLog(tmp_path)
        log.append("a", {"start": start})
        log.append("b", {"start": start})
        log.append("b", {"start": -start})
        log.append("c", {"start": start})
    FinishedLog(tmp_path).append("c", None)
    assert FinishedLog(tmp_path).read() == {"a": {"start": 11}, "b": {"start": -11}}
    assert FinishedLog(tmp_path).read({"b"}) == {"b": {"start": -11}}


def test_a_line_is_there_when_its_writer_is_killed_right_after_it(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert FinishedLog(tmp_path).read() == {"killed": {"files": {}}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("run"))


def job(model: Path, folder: Path) -> None:
    """Segment `folder`/images into `folder`/out, scored with `folder`/truth."""
    arguments = ["-m", str(model), "-i", str(folder / "images"), "--masks.folder", str(folder / "truth")]
    arguments += ["--masks.classes", *(info.name for info in CLASSES), "-o", str(folder / "out"), "--quiet"]
    arguments += ["--output.figures", "0", "--wandb", "off", "--output.probabilities", "float16"]
    assert run_job(infer.main, arguments) == FINISHED


@pytest.fixture
def finished(model: Path, tmp_path: Path) -> Path:
    """A folder with images, true masks and results."""
    shapes = dict.fromkeys("abcde", (30, 40))
    write_images(tmp_path / "images", shapes)
    write_truth(tmp_path / "truth", shapes)
    job(model, tmp_path)
    return tmp_path


def results(folder: Path) -> dict[str, str]:
    """Checksums, except of the report, which tells when the job ran."""
    return {name: checksum for name, checksum in checksums(folder / "out").items() if name != "report.html"}


def written(folder: Path, before: dict[Path, int]) -> set[str]:
    """The names of masks that are newer than `before`."""
    return {path.stem for path in (folder / "out/masks").iterdir() if path.stat().st_mtime_ns != before[path]}


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (folder / "out/masks").iterdir()}


def test_the_state_of_finished_images_is_one_file_not_one_per_image(model: Path, finished: Path) -> None:
    job(model, finished)  # which writes no line
    files = [path for path in (finished / "out/state").rglob("*") if path.is_file()]
    assert sorted(path.suffix for path in files) == [".json", ".jsonl"]


def test_cut_edited_and_missing_results_and_damaged_lines_are_computed_again(model: Path, finished: Path) -> None:
    reference, before = results(finished), times(finished)
    masks = finished / "out/masks"
    os.truncate(masks / "a.png", 50)
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(masks / "b.png")
    before |= {masks / f"{name}.png": (masks / f"{name}.png").stat().st_mtime_ns for name in "ab"}
    (finished / "out/probabilities/c.npy").unlink()
    (log,) = (finished / "out/state" / LOGS).iterdir()
    lines = log.read_bytes().splitlines(keepends=True)
    assert b'"name": "d"' in lines[3]
    lines[3] = lines[3].replace(b'"pixel_accuracy": 0.', b'"pixel_accuracy": 1.')
    log.write_bytes(b"".join(lines))
    job(model, finished)
    assert written(finished, before) == {"a", "b", "c", "d"}
    assert results(finished) == reference


@pytest.mark.parametrize("version", [0, 1])
def test_results_of_the_former_layout_are_kept_read_and_superseded(model: Path, finished: Path, version: int) -> None:
    reference = results(finished)
    to_former_layout(finished / "out", version)
    images = [image.name for image in FinishedResult(finished / "out").images]
    assert images == list("abcde")
    before = times(finished)
    (finished / "out/probabilities/c.npy").unlink()
    job(model, finished)
    assert written(finished, before) == {"c"}
    assert results(finished) == reference
    settings = json.loads((finished / "out/state" / SETTINGS).read_text())
    assert settings["format_version"] == 2  # earlier versions, which don't know logs, refuse the folder from now on
    (finished / "out/state" / FORMER / "a.json").unlink()
    before = times(finished)
    job(model, finished)
    assert written(finished, before) == {"a"}  # c is known from the log
    assert [image.name for image in FinishedResult(finished / "out").images] == images
