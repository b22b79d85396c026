"""The ledger counts starts and detects three starts without progress."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from slurm.ledger import STARTS_WITHOUT_PROGRESS, Ledger, Start, fingerprint


def test_a_ledger_survives_a_round_trip(tmp_path: Path) -> None:
    ledger = Ledger.read(tmp_path / "7_ledger.json")
    ledger.begin("node1", "a")
    ledger.close("failed", "the reason")
    again = Ledger.read(tmp_path / "7_ledger.json")
    assert (again.starts, again.end, again.reason) == (ledger.starts, "failed", "the reason")
    again.begin("node2", "b")
    assert (Ledger.read(again.path).end, len(Ledger.read(again.path).starts)) == ("", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["7_ledger.json"]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=8), st.integers(0, 2))
def test_no_progress_means_the_same_state_at_the_last_three_starts_and_now(states: list[int], now: int) -> None:
    ledger = Ledger(Path("unused"), [Start(0.0, "node1", str(state)) for state in states])
    same = len(states) >= STARTS_WITHOUT_PROGRESS and set(states[-STARTS_WITHOUT_PROGRESS:]) == {now}
    assert bool(ledger.standstill(str(now))) == same


def test_progress_means_a_new_or_larger_file(tmp_path: Path) -> None:
    patterns = (f"{tmp_path}/**/*.tar",)
    seen = [fingerprint(patterns)]
    (tmp_path / "a.tar").write_text("x")
    seen.append(fingerprint(patterns))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.tar").write_text("x")
    seen.append(fingerprint(patterns))
    (tmp_path / "a.tar").write_text("xx")
    seen.append(fingerprint(patterns))
    assert len(set(seen)) == 4
    (tmp_path / "log.txt").write_text("not what the job makes")
    (tmp_path / "a.tar").touch()
    assert fingerprint(patterns) == seen[-1]
