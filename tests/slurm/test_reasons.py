"""Slurm's job states in plain words, tested with a fake squeue."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from jobs.cli import main
from slurm import standing
from slurm.requeue import FROM_OUTSIDE, OUT_OF_TIME, Comeback, ask_slurm, state_and_reason, state_of
from slurm.standing import JobState, left_in_queue


def squeue(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A `squeue` that runs `script`."""
    program = folder / "bin" / "squeue"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


@pytest.mark.parametrize(("reason", "told"), [("TimeLimit", OUT_OF_TIME), ("None", FROM_OUTSIDE)])
def test_a_time_limit_is_reported_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, told: str
) -> None:
    squeue(tmp_path, monkeypatch, f"echo '16|RUNNING|None'; echo '17|COMPLETING|{reason}'")
    assert state_and_reason("17") == ("COMPLETING", reason)
    assert state_of("18") == "GONE"
    ledger = tmp_path / "17_ledger.json"
    with Comeback("17", 0, 0, ledger, tmp_path / "reason", ()) as comeback, pytest.raises(SystemExit):
        comeback.stopped()
    assert told in ledger.read_text()


def test_an_unresponsive_slurm_is_given_up_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    squeue(tmp_path, monkeypatch, "echo 'error: slurm_receive_msg' >&2; exit 1")
    assert ask_slurm("squeue", limit=2.5) is None
    assert "squeue does not answer; retrying for up to 2 s" in capsys.readouterr().err
    squeue(tmp_path, monkeypatch, "exec sleep 600")
    assert ask_slurm("squeue", limit=0.5) is None


def test_a_removed_run_folder_names_the_remaining_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    squeue(tmp_path, monkeypatch, f"echo '17|RUNNING|segdist {tmp_path}/runs/gone/slurm'; echo '18|RUNNING|other'")
    assert left_in_queue(tmp_path / "runs" / "gone" / "slurm") == ["17 RUNNING"]
    assert main(["queue", "gone"]) == 2
    assert "removed while jobs for it are in the queue (17 RUNNING)" in capsys.readouterr().err


def test_a_silent_failure_on_a_full_disk_gets_that_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    failed = JobState("FAILED", "exit code 9")
    assert standing._on_a_full_disk(tmp_path, failed) == failed
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10, 10, 0))
    assert "is full: make room" in standing._on_a_full_disk(tmp_path, failed).reason
    assert standing._on_a_full_disk(tmp_path, JobState("COMPLETED")) == JobState("COMPLETED")
