"""A warm-started run resumes without the source of its weights, but only from an undamaged checkpoint."""

import shutil
from pathlib import Path

import pytest

from jobs import train
from jobs.entry import run_job
from tests.support.programs import QUIET, TINY_NET
from tests.support.sets import tiny_set


@pytest.mark.slow
def test_a_run_resumes_without_the_source_of_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_set(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    usual = ["-f", "tiny", "-b", "4", "--epoch-steps", "2", *TINY_NET, *QUIET]
    warm = [*usual, "--name", "warm", "--init-from", "source"]
    assert run_job(train.main, [*usual, "--name", "source", "--steps", "2"]) == 0
    assert run_job(train.main, [*warm, "--steps", "2"]) == 0
    shutil.rmtree(tmp_path / "runs" / "source")
    capsys.readouterr()
    assert run_job(train.main, [*warm, "--steps", "4"]) == 0
    assert "runs/source is gone; the run resumes from its own checkpoint" in capsys.readouterr().err
    for checkpoint in (tmp_path / "runs" / "warm" / "checkpoints").glob("step-*.pt"):
        checkpoint.write_bytes(b"damaged")
    assert run_job(train.main, [*warm, "--steps", "6"]) == 2
    assert "--init-from source: missing, and runs/warm has no intact checkpoint" in capsys.readouterr().err
