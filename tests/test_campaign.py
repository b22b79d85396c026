"""Two campaign trials of each kind, and checks that the campaign detects differences."""

import random
from pathlib import Path

import pytest

from tests.campaign import LOCAL, Campaign, Trial, compare_predictions, compare_sets, flip_a_bit, main, table


@pytest.mark.slow
def test_two_trials_of_each_kind_end_with_the_same_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = [kind for kind in LOCAL if kind != "folds"]  # covered by tests/jobs/test_cross_validate.py
    command = [*kinds, "--trials", "2", "--folder", str(tmp_path)]
    assert main(command) == 0, capsys.readouterr().out
    assert len(Campaign(tmp_path).done()) == 2 * len(kinds)
    assert main(command) == 0  # finished trials are kept
    assert len(Campaign(tmp_path).done()) == 2 * len(kinds)


def test_a_flipped_bit_and_a_leftover_are_detected(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mask.png").write_bytes(b"same")
    one, other = tmp_path / "one", tmp_path / "other"
    assert compare_predictions(one, other) == compare_sets(one, other) == ""
    (other / ".mask.png.0123abcd.tmp").touch()
    assert compare_predictions(one, other) == "other bits: .mask.png.0123abcd.tmp"
    (other / ".mask.png.0123abcd.tmp").unlink()
    flip_a_bit([other / "mask.png"], random.Random(1))
    assert compare_predictions(one, other) == compare_sets(one, other) == "other bits: mask.png"


def test_the_table_counts_and_names_failed_trials() -> None:
    trials = [
        Trial("train", 0, "1 rank, killed after 1.0 s", "same", 2.0),
        Trial("train", 1, "1 rank, killed after 2.0 s", "other bits", 2.0),
        Trial("flips", 0, "model byte 1 bit 2", "same", 2.0),
    ]
    text = table(trials)
    assert "1 rank" in text
    assert "1 of 2" in text
    assert "WRONG train 1, 1 rank, killed after 2.0 s: other bits" in text
