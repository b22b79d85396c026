"""Two jobs in one folder, and a job whose launcher is killed, started as users do."""

import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.support.programs import QUIET, TINY_NET, job, processes, run, start, wait_until
from tests.support.sets import tiny_set
from tests.support.states import last_step

TRAINING = ["-f", "tiny", "--name", "one", "-b", "4", "--log-every", "1", "--checkpoint.every-steps", "5"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    tiny_set(tmp_path / "data")
    return tmp_path


def rows(place: Path) -> Counter[tuple[str, int]]:
    """How often each row occurs."""
    lines = (place / "runs" / "one" / "metrics.jsonl").read_text().splitlines()
    return Counter((row["kind"], row["step"]) for row in map(json.loads, lines))


@pytest.mark.slow
def test_a_second_training_is_refused_naming_the_first(place: Path) -> None:
    command = job("train", [*TRAINING, "--steps", "1000", *TINY_NET, *QUIET])
    first = start(command, place, place / "log")
    wait_until(lambda: (place / "runs" / "one" / "metrics.jsonl").exists())
    second = run(command, place, check=False)
    assert second.returncode == 2
    assert f"runs/one: in use by segdist train (process {first.pid} on " in second.stderr
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 75, (place / "log").read_text()
    assert set(rows(place).values()) == {1}


@pytest.mark.slow
def test_after_a_kill_ranks_are_gone_and_the_same_command_resumes_at_once(place: Path) -> None:
    def command(steps: int) -> list[str]:
        return job("train", [*TRAINING, "--steps", str(steps), *TINY_NET, *QUIET], ranks=2)

    launcher = start(command(1000), place, place / "log")
    checkpoints = place / "runs" / "one" / "checkpoints"
    wait_until(lambda: list(checkpoints.glob("step-*.pt")))
    ranks = [number for number, _ in processes("one", place) if number != launcher.pid]
    assert len(ranks) == 2
    launcher.send_signal(signal.SIGKILL)  # only the launcher
    launcher.wait()
    done = last_step(place / "runs" / "one")
    run(command(done + 7), place)
    assert all(not Path(f"/proc/{number}").exists() for number in ranks)
    assert set(rows(place).values()) == {1}
    assert not list((place / "runs" / "one").glob(".owners"))


def test_builders_with_the_same_recipe_share_a_set_and_others_are_refused(tmp_path: Path) -> None:
    options = ["--synthetic.train", "40", "--synthetic.test", "1", "--patches.per-image", "40", "--shard-mb", "1"]
    command = job("make_shards", ["-f", "many", *options, "--processes", "1"])
    builders = [start(command, tmp_path, tmp_path / f"log{number}") for number in range(2)]
    wait_until(lambda: (tmp_path / "data" / "many" / ".building").exists())
    for builder in builders:
        os.kill(builder.pid, signal.SIGSTOP)
    other = run(job("make_shards", ["-f", "many", *options, "--overwrite"]), tmp_path, check=False)
    for builder in builders:
        os.kill(builder.pid, signal.SIGCONT)
    assert other.returncode == 2, other.stdout + other.stderr
    assert "data/many: in use by segdist make-shards (process " in other.stderr
    assert [builder.wait(120) for builder in builders] == [0, 0], (tmp_path / "log0").read_text()
    assert not (tmp_path / "data" / "many" / ".owners").exists()
