"""`segdist pipeline`: interrupted in any job, it leaves nothing running and can be resumed."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from segdist.core.exit_codes import STOPPED, USAGE
from tests.support.programs import job, processes, run, start, wait_until

CHAIN = {
    "name": "chain",
    "processes": 2,
    "make_shards": {"synthetic": {"train": 6, "test": 2}, "patches": {"size": 32, "per_image": 4}},
    "train": {"steps": 400, "batch_size": 4, "model": {"width": 4, "depth": 2}, "log_every": 1},
    "tracking": {"wandb": "off"},
}


def write_chain(folder: Path, **train: object) -> list[str]:
    """Write the chain's settings to `folder`; return the command."""
    (folder / "chain.json").write_text(json.dumps(CHAIN | {"train": CHAIN["train"] | train}))  # type: ignore[operator]
    return job("pipeline", ["--config", "chain.json"])


def start_training(command: Sequence[str], folder: Path) -> "subprocess.Popen[bytes]":
    """Start the chain, logging to `folder`/log, and wait until training is under way."""
    process = start(command, folder, folder / "log")
    metrics = folder / "runs" / "chain" / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") > 3)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_pipeline_stops_its_ranks_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    command, log = write_chain(tmp_path), tmp_path / "log"
    process = start_training(command, tmp_path)
    process.send_signal(number)  # only to this process
    assert process.wait(60) == STOPPED, log.read_text()
    said = log.read_text()
    assert "stopped; the same command resumes from there" in said
    assert "Traceback" not in said
    assert not list(processes("chain", tmp_path))
    summary = json.loads((tmp_path / "runs" / "chain" / "summary.json").read_text())
    assert summary["state"] == "stopped"
    assert 0 < summary["step"] < 400
    assert "mean IoU over images" in run(command, tmp_path).stdout


@pytest.mark.slow
def test_a_second_ctrl_c_does_not_wait_for_ranks_that_hang(tmp_path: Path) -> None:
    process = start_training(write_chain(tmp_path), tmp_path)
    ranks = [number for number, _ in processes("chain", tmp_path)]
    assert len(ranks) == 2
    for rank in ranks:
        os.kill(rank, signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(15) == 128 + signal.SIGINT  # the agent would wait for half a minute
    wait_until(lambda: not list(processes("chain", tmp_path)), 15)


def test_settings_of_all_jobs_are_checked_before_the_first_starts(tmp_path: Path) -> None:
    command = write_chain(tmp_path, epohcs=3)
    failed = run(command, tmp_path, check=False)
    assert failed.returncode == USAGE, failed.stderr
    assert "unknown key epohcs; did you mean epochs?" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not failed.stdout  # refused before the shards are made
    assert not (tmp_path / "data").exists()
