"""Who speaks when several ranks see the same bad input."""

from collections.abc import Sequence

import pytest

from jobs import entry
from segdist.core.errors import UserError


def refuse(argv: Sequence[str] | None) -> int:
    raise UserError("the masks are missing")


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID"])
def test_other_ranks_leave_rank_0_the_time_to_speak(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(entry.time, "sleep", waited.append)
    monkeypatch.setenv(variable, "0")
    assert entry.run_job(refuse) == entry.USAGE
    assert capsys.readouterr().err == "error: the masks are missing\n"
    assert not waited
    monkeypatch.setenv(variable, "1")
    assert entry.run_job(refuse) == entry.USAGE
    # A launcher would have ended it meanwhile, had rank 0 left.
    assert waited == [entry.TIME_FOR_RANK_0]
    assert capsys.readouterr().err == "rank 1: error: the masks are missing\n"


def test_a_rank_that_alone_meets_an_error_says_so_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def damaged(argv: Sequence[str] | None) -> int:
        error = UserError("a damaged record")
        error.on_this_rank = True
        raise error

    monkeypatch.setattr(entry.time, "sleep", lambda seconds: pytest.fail("it waits"))
    monkeypatch.setenv("RANK", "3")
    assert entry.run_job(damaged) == entry.USAGE
    assert capsys.readouterr().err == "rank 3: error: a damaged record\n"


def test_a_job_that_lost_its_peers_says_so_with_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def lonely(argv: list[str] | None) -> int:
        raise RuntimeError("[gloo] Connection closed by peer")

    assert entry.run_job(lonely) == entry.LOST_PEERS
    assert "Connection closed by peer" in capsys.readouterr().err
