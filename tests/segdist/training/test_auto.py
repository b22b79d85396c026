"""Automatic settings: chosen once by rank 0, with the number of steps fixed once; old runs keep theirs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from segdist.core.errors import UserError
from segdist.training.pace import END_SECONDS, SUSTAINED, fitting
from segdist.training.presets import find_preset, paper_because_of_epochs
from tests.support.programs import QUIET, job, run

MINUTES = ["--minutes", "0.2", "--tracking.wandb", "off"]


def description(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def test_the_number_of_steps_fits_the_remaining_time() -> None:
    length = fitting(10, spent=20, step=0.1, validation=1.0)
    validations = -(-length.steps // length.validate_every)
    assert 20 + length.steps * 0.1 * SUSTAINED + validations * 1.0 + END_SECONDS <= 600
    assert 600 - (20 + length.steps * 0.1 * SUSTAINED + validations * 1.0 + END_SECONDS) < 2


def test_slow_validation_happens_less_often_but_always_at_the_end() -> None:
    assert fitting(10, 0, 0.1, 300.0).validate_every == fitting(10, 0, 0.1, 300.0).steps
    assert fitting(10, 0, 0.1, 10.0).validate_every < fitting(10, 0, 0.1, 10.0).steps


def test_without_any_time_one_step_remains() -> None:
    assert fitting(0.01, spent=60, step=1, validation=1).steps == 1


def test_the_default_preset_is_auto_or_paper_with_epochs(tmp_path: Path) -> None:
    assert find_preset([]) == ("auto", {"minutes": 20.0})
    assert find_preset(["--steps", "5"]) == ("auto", {})
    assert find_preset(["--minutes", "5"]) == ("auto", {})
    assert "steps" not in find_preset(["--preset", "fast", "--minutes", "5"])[1]
    with pytest.raises(UserError, match="--epochs and --minutes"):
        find_preset(["--epochs", "5", "--minutes=3"])
    assert find_preset(["-e", "3"])[0] == "paper"
    assert find_preset(["--preset", "auto", "-e", "3"]) == ("auto", {})
    (tmp_path / "job.toml").write_text("epochs = 3\n")
    assert find_preset(["--config", str(tmp_path / "job.toml")])[0] == "paper"
    assert paper_because_of_epochs(["--epochs=3"])
    assert not paper_because_of_epochs(["--epochs=3", "--preset", "paper"])
    assert not paper_because_of_epochs(["--steps", "3"])


@pytest.mark.slow
def test_choices_are_printed_stored_and_reused(work: Path) -> None:
    command = job("train", ["-f", "tiny", "--name", "chosen", "--threads", "1", *MINUTES])
    first = run(command, work).stdout
    assert "chosen:\n  model.width = 16: " in first
    found = description(work / "runs" / "chosen")
    steps = found["config"]["steps"]
    assert steps > 0
    assert found["config"]["minutes"] == 0.2
    assert {choice["setting"] for choice in found["choices"]} >= {
        "model.width",
        "batch_size",
        "loss.name",
        "augment.rotate90",
    }
    assert json.loads((work / "runs" / "chosen" / "summary.json").read_text())["step"] == steps
    # Another machine might choose differently, so the choices in the run's folder win.
    for choice in found["choices"]:
        if choice["setting"] == "model.width":
            choice["reason"] = "because it was so"
    (work / "runs" / "chosen" / "config.json").write_text(json.dumps(found))
    again = run(command, work).stdout
    assert "model.width = 16: because it was so" in again
    assert f"finished already, after {steps} steps" in again
    longer = run([*command[:-4], "--minutes", "0.4", "--tracking.wandb", "off"], work).stdout
    assert f"finished after step {2 * steps} of {2 * steps}" in longer


@pytest.mark.slow
def test_user_settings_are_not_overridden(work: Path) -> None:
    settings = ["-f", "tiny", "--name", "set", "--steps", "3", "--model.width", "4", "--tracking.wandb", "off"]
    done = run(job("train", settings), work).stdout
    assert "model.width" not in done
    assert "batch_size" in done
    assert description(work / "runs" / "set")["config"]["model"]["width"] == 4
    assert description(work / "runs" / "set")["config"]["steps"] == 3


@pytest.mark.slow
def test_two_ranks_use_the_choices_of_rank_0(work: Path) -> None:
    settings = ["-f", "tiny", "--name", "two", "--threads", "1", *MINUTES]
    done = run(job("train", settings, ranks=2), work).stdout
    assert done.count("chosen:") == 1
    assert description(work / "runs" / "two")["config"]["batch_size"] % 2 == 0
    assert re.search(r"finished after step (\d+) of \1\b", done)


@pytest.mark.slow
def test_epochs_without_a_preset_mean_the_published_method_as_the_first_line_says(work: Path) -> None:
    settings = ["-f", "tiny", "--name", "published", "-e", "1", "--model.width", "4", "--tracking.wandb", "off"]
    done = run(job("train", settings), work).stdout
    assert done.splitlines()[0] == "--epochs without --preset: the preset paper, the method as published"
    assert description(work / "runs" / "published")["config"]["optim"]["optimizer"] == "sgd"
    assert description(work / "runs" / "published")["choices"] == []


@pytest.mark.slow
def test_a_run_from_before_choices_existed_resumes_as_the_published_method(work: Path) -> None:
    settings = ["-f", "tiny", "--name", "before", "--steps", "4", "--model.width", "4", *QUIET]
    run(job("train", [*settings, "--preset", "paper"]), work)
    path = work / "runs" / "before" / "config.json"
    old = description(path.parent)
    del old["choices"]
    path.write_text(json.dumps(old | {"format_version": 1}))
    run(job("train", [*settings[:4], "--steps", "6", *settings[6:]]), work)
    assert json.loads((path.parent / "summary.json").read_text())["step"] == 6
    assert description(path.parent)["config"]["optim"]["optimizer"] == "sgd"


@pytest.mark.slow
def test_the_dry_run_shows_choices_time_and_memory_and_writes_nothing(work: Path) -> None:
    done = run([*job("train", ["-f", "tiny", "--name", "dry", "--minutes", "3"]), "--dry-run"], work).stdout
    assert "chosen:\n  model.width" in done
    assert re.search(r"  time: about \d+:\d\d without validation, ", done)
    assert "memory per rank:" in done
    assert not (work / "runs" / "dry").exists()
