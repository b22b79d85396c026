"""Reading a run folder at any stage of its life."""

import json
from pathlib import Path

import pytest

from segdist.core.errors import UserError
from segdist.runs.record import find_run, read_run
from tests.support.run_example import BEGAN, CLASSES, STEPS, write_predictions, write_run


def test_a_finished_run_is_read_with_its_predictions(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_predictions(folder / "predictions" / "cells", ["a", "b"])
    run = read_run(folder)
    assert run.state() == "finished"
    assert (run.step, run.steps, run.epoch) == (STEPS, STEPS, 10)
    assert (run.resumes, run.skipped_steps) == (1, 2)
    assert run.best is run.val[-1]
    assert run.classes == CLASSES
    assert [item.folder.name for item in run.predictions] == ["cells"]


@pytest.mark.parametrize(("age", "state"), [(5.0, "running"), (10_000.0, "silent")])
def test_a_run_without_an_end_counts_as_running_until_it_goes_silent(tmp_path: Path, age: float, state: str) -> None:
    run = read_run(write_run(tmp_path / "run", steps_done=100, state=None))
    assert run.state(now=BEGAN + 50 + age) == state


def test_a_slow_run_is_not_called_silent_between_rows(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps_done=0, state=None)
    rows = [{"kind": "train", "step": step, "epoch": 0, "loss": 1.0, "time": BEGAN + 60 * step} for step in range(1, 6)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_run(folder).state(now=BEGAN + 300 + 400) == "running"


def test_a_new_run_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"config": {}}')
    run = read_run(tmp_path)
    assert run.state() == "waiting"
    assert (run.step, run.steps, run.epoch, run.best, run.classes) == (0, None, 0, None, [])


def test_a_partly_written_last_line_is_ignored(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    whole = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(whole[:-20])
    assert len(read_run(folder).val) == 9


@pytest.mark.parametrize("damage", ["{", "[1, 2]", '{"kind": "val"}', "\x00\x00\xff"])
@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl"])
def test_a_damaged_line_hides_only_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    folder = write_run(tmp_path / "run")
    whole = read_run(folder)
    lines = (folder / name).read_text().splitlines(keepends=True)
    place = len(lines) // 2
    lines.insert(place, damage + "\n")
    (folder / name).write_bytes("".join(lines).encode("latin-1"))
    again = read_run(folder)
    assert (again.train, again.val, again.events) == (whole.train, whole.val, whole.events)
    assert again.state() == "finished"
    assert f"{folder / name}: line {place + 1} of {len(lines)} damaged" in capsys.readouterr().err


def test_a_run_of_a_newer_program_is_refused_with_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"format_version": 99, "config": {}}')
    with pytest.raises(UserError, match="format version 99, written by a newer segdist"):
        read_run(tmp_path)


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither a run \(no config\.json\) nor scored predictions"):
        read_run(tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary\.json: damaged"):
        read_run(folder)


def test_names_are_looked_up_in_runs_and_an_error_lists_known_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "alpha")
    assert find_run("alpha") == Path("runs/alpha")
    assert find_run("runs/alpha") == Path("runs/alpha")
    with pytest.raises(UserError, match="runs here: alpha"):
        find_run("beta")
