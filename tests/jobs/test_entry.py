"""Which rank reports an error when several see the same bad input."""

from collections.abc import Sequence

import pytest

from jobs import entry
from segdist.core.errors import UserError


def refuse(argv: Sequence[str] | None) -> int:
    raise UserError("the masks are missing")


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID"])
def test_other_ranks_give_rank_0_time_to_report(
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
    # By then, a launcher would have stopped this rank if rank 0 had exited.
    assert waited == [entry.TIME_FOR_RANK_0]
    assert capsys.readouterr().err == "rank 1: error: the masks are missing\n"


def test_an_error_on_one_rank_is_reported_at_once(
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


def test_a_job_that_lost_its_peers_has_its_own_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def lonely(argv: list[str] | None) -> int:
        raise RuntimeError("[gloo] Connection closed by peer")

    assert entry.run_job(lonely) == entry.LOST_PEERS
    assert "Connection closed by peer" in capsys.readouterr().err
