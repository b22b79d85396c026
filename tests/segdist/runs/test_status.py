"""What `segdist status` shows."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from jobs import status as status_job
from segdist.core.errors import UserError
from segdist.core.paths import HEARTBEATS
from segdist.runs.record import read_run
from segdist.runs.status import BARS, overview, remaining_seconds, sparkline, status
from tests.support.run_example import BEGAN, STEPS, write_predictions, write_run

NUMBERS = st.one_of(st.none(), st.floats(-1e6, 1e6))


def text_of(shown: RenderableType, width: int = 120) -> str:
    """The text shown in a terminal of this width."""
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


@given(st.lists(NUMBERS, max_size=200), st.integers(1, 60))
@settings(deadline=None, max_examples=100)
def test_a_sparkline_has_one_character_per_value_up_to_its_width(values: list[float | None], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) == min(len(values), width)
    assert set(line) <= set(BARS + " ")


def test_a_sparkline_spans_lowest_to_highest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == BARS
    assert sparkline([7, None, 0]) == "█ ▁"
    assert sparkline([0, 0, 7, 7], width=2) == "▁█"
    assert sparkline([5, 5]) == "▁▁"


def test_a_running_run_shows_step_time_left_curves_and_classes(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "alpha", steps_done=200, state=None))
    assert remaining_seconds(run) == pytest.approx((STEPS - 200) / 2)
    text = text_of(status(run, now=BEGAN + 110))
    assert "running, last sign of life 0:09 ago" in text
    assert f"step 200/{STEPS}  epoch 5  1:40 left  resumes: 1  skipped steps: 2" in text
    for word in ("mean IoU", "validation loss", "learning rate", "samples/s", "waiting for data", "nucleus", "█"):
        assert word in text


def test_each_node_of_a_running_run_has_a_line_silent_nodes_first(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "alpha", steps_done=200, state=None)
    (folder / HEARTBEATS).mkdir()
    for node, step, age in (("gpu1", 200, 3), ("gpu2", 180, 90), ("gpu3", 199, 2)):
        place = {"node": node, "ranks": [0, 1], "step": step, "doing": "forward pass", "time": BEGAN + 110 - age}
        (folder / HEARTBEATS / f"{node}.json").write_text(json.dumps(place))
    (folder / HEARTBEATS / "gpu4.json").write_text('{"node": ')
    lines = [line.strip() for line in text_of(status(read_run(folder), now=BEGAN + 110)).splitlines() if "gpu" in line]
    assert lines == [
        "gpu2: 2 ranks, step 180, forward pass, 1:30 ago, silent",
        "gpu3: 2 ranks, step 199, forward pass, 0:02 ago",
        "gpu1: 2 ranks, step 200, forward pass, 0:03 ago",
    ]


def test_with_many_nodes_only_those_behind_are_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "alpha", steps_done=200, state=None)
    (folder / HEARTBEATS).mkdir()
    for number in range(30):
        place = {"node": f"gpu{number:02}", "ranks": [number], "step": number, "doing": "barrier", "time": BEGAN + 100}
        (folder / HEARTBEATS / f"gpu{number:02}.json").write_text(json.dumps(place))
    text = text_of(status(read_run(folder), now=BEGAN + 110))
    assert "gpu07: 1 rank, step 7, barrier, 0:10 ago" in text
    assert "gpu08" not in text
    assert "and 22 more nodes, up to step 29" in text


def test_a_finished_run_shows_its_scores_on_test_images(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "alpha")
    write_predictions(folder / "predictions" / "cells", ["a"])
    text = text_of(status(read_run(folder)))
    assert "finished" in text
    assert "mean IoU over images 0.8800" in " ".join(text.split())  # a long path wraps
    assert "left" not in text


def test_square_brackets_in_names_are_not_markup(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "[red]run", classes=["[bold]a", "b"])
    write_predictions(folder / "predictions" / "x", ["i"], classes=["[bold]a", "b"])
    text = text_of(status(read_run(folder)))
    assert "[bold]a" in text
    assert "[red]run" in text


def test_the_overview_has_one_line_per_run(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / name, level=level)) for name, level in (("alpha", 0.9), ("beta", 0.5))]
    lines = text_of(overview(runs)).splitlines()
    assert [line.split()[0] for line in lines] == ["run", "alpha", "beta"]


def test_follow_ends_with_the_run_and_prints_plain_text_to_a_pipe(tmp_path: Path) -> None:
    write_run(tmp_path / "alpha")
    command = [sys.executable, "-m", "jobs.status", str(tmp_path / "alpha"), "--follow", "--every", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "100"})
    assert "finished" in done.stdout
    assert "\x1b" not in done.stdout


def test_without_a_name_all_runs_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "alpha")
    write_run(tmp_path / "runs" / "beta", state="failed")
    assert status_job.main([]) == 0
    text = capsys.readouterr().out
    assert "alpha" in text
    assert "failed" in text


def test_predictions_outside_a_run_take_one_line(tmp_path: Path) -> None:
    folder = write_predictions(tmp_path / "out", ["a"])
    assert text_of(status(read_run(folder)), width=300).splitlines() == [f"{folder}: mean IoU over images 0.8800"]


def test_follow_waits_for_a_run_that_has_not_started(tmp_path: Path) -> None:
    folder = tmp_path / "alpha"
    folder.mkdir()
    command = [sys.executable, "-m", "jobs.status", str(folder), "--follow", "--every", "0.1"]
    environ = {**os.environ, "COLUMNS": "200"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        time.sleep(1)
        assert process.poll() is None
        write_run(folder)
        said = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert "finished" in said


def test_a_damaged_run_does_not_hide_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("alpha", "beta", "gamma"):
        write_run(tmp_path / "runs" / name)
    (tmp_path / "runs" / "beta" / "config.json").write_text("{")
    assert status_job.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["alpha", "beta", "gamma"]
    assert "can't be read" in lines[2]
    assert "finished" in lines[3]
    assert "runs/beta/config.json: damaged" in lines[4]
    with pytest.raises(UserError, match=r"beta/config\.json: damaged"):
        status_job.main(["beta"])
