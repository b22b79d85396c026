"""The program without the wandb package."""

import sys
from pathlib import Path

import pytest

from tests.support.programs import TINY_NET, run
from tests.support.sets import tiny_set

WITHOUT = "import sys; sys.modules['wandb'] = None; from jobs.cli import main; sys.exit(main(sys.argv[1:]))"
"""Runs `segdist` in a process where `import wandb` fails."""


def without_wandb(*arguments: str) -> list[str]:
    return [sys.executable, "-c", WITHOUT, *arguments]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("without-wandb")
    tiny_set(folder / "data")
    return folder


@pytest.mark.slow
def test_training_and_inference_need_no_wandb(work: Path) -> None:
    done = run(without_wandb("train", "-f", "tiny", "-n", "plain", "-b", "8", "--steps", "2", *TINY_NET), work)
    assert done.stderr.count("W&B is not installed: metrics stay in the run folder") == 1
    assert (work / "runs" / "plain" / "best.safetensors").is_file()
    run(without_wandb("infer", "-m", "plain", "-f", "tiny"), work)
    assert (work / "runs" / "plain" / "predictions" / "tiny" / "scores.json").is_file()
    quiet = run(without_wandb("train", "-f", "tiny", "-n", "off", "--steps", "1", "--wandb", "off", *TINY_NET), work)
    assert "W&B" not in quiet.stderr


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_explicit_wandb_modes_are_refused(work: Path, mode: str) -> None:
    done = run(without_wandb("train", "-f", "tiny", "-n", mode, "--wandb", mode, *TINY_NET), work, check=False)
    assert done.returncode == 2
    assert f"--wandb {mode}: W&B is not installed; pip install wandb, or use --wandb off" in done.stderr
    assert not (work / "runs" / mode).exists()
