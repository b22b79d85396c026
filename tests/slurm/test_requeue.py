"""Which rank requests a requeue after losing its peers, tested with fake squeue and scontrol."""

from pathlib import Path

import pytest

from slurm import requeue
from slurm.requeue import PEER_GRACE, TURN, WAIT_FOR_THE_END, Comeback, JobFailed


def loses_its_peers(
    local_rank: int, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[float], list[str]]:
    """A rank's waits in seconds, and its requests to Slurm, for a job in `state`."""
    asked = tmp_path / "asked"
    for name, answer in (("squeue", f"echo '17|{state}|None'"), ("scontrol", "")):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> {asked}\n{answer}\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    waits: list[float] = []
    monkeypatch.setattr(requeue.time, "sleep", waits.append)
    comeback = Comeback("17", 8 + local_rank, local_rank, tmp_path / "ledger", tmp_path / "reason", ())
    with comeback, pytest.raises(JobFailed, match="was not ended by Slurm in time"):
        comeback.lost_peers()
    return waits, [line for line in asked.read_text().splitlines() if line.startswith("scontrol")]


def test_the_first_rank_of_a_node_asks_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, asked = loses_its_peers(0, "RUNNING", tmp_path, monkeypatch)
    assert asked == ["scontrol requeue 17"]
    assert [wait for wait in waits if wait >= 1] == [PEER_GRACE, WAIT_FOR_THE_END]


def test_the_others_ask_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks before it may be dead."""
    waits, asked = loses_its_peers(3, "RUNNING", tmp_path, monkeypatch)
    assert asked == ["scontrol requeue 17"]
    assert [wait for wait in waits if wait >= 1] == [PEER_GRACE, 3 * TURN, WAIT_FOR_THE_END]


@pytest.mark.parametrize("state", ["COMPLETING", "PENDING", "REQUEUED"])
def test_a_job_already_being_requeued_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    _, asked = loses_its_peers(1, state, tmp_path, monkeypatch)
    assert asked == []
