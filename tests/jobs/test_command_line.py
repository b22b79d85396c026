"""Precedence (defaults < preset < file < command line), refusals by name, and help without heavy imports."""

import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from jobs.cli import JOBS, main
from jobs.command_line import parse
from segdist.core.errors import UserError
from segdist.training.presets import find_preset


@dataclass(frozen=True)
class Section:
    """A section."""

    width: int = 16
    """Its width."""


@dataclass(frozen=True)
class Config:
    """A job."""

    epochs: Annotated[int, tyro.conf.arg(aliases=["-e"])] = 1
    """How many epochs."""
    rate: float = 0.5
    section: Section = field(default_factory=Section)

    def validate(self) -> None:
        if self.epochs < 1:
            raise UserError(f"--epochs {self.epochs}: must be at least 1")


def test_the_command_line_overrides_file_preset_and_defaults(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text("rate = 0.2\n[section]\nwidth = 8\n")
    preset = {"epochs": 7, "rate": 0.9, "section": {"width": 32}}
    command = parse(Config, ["--config", str(file), "--section.width", "4"], "job", "", "quick", preset)
    assert command.job == Config(epochs=7, rate=0.2, section=Section(width=4))
    assert not command.dry_run


def test_short_flags_and_dry_run() -> None:
    command = parse(Config, ["-e", "3", "--dry-run"], "job", "")
    assert command.job.epochs == 3
    assert command.dry_run


def test_a_wrong_value_in_the_file_can_be_overridden_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text("epochs = 0")
    with pytest.raises(UserError, match="--epochs 0"):
        parse(Config, ["--config", str(tmp_path / "job.toml")], "job", "")
    assert parse(Config, ["--config", str(tmp_path / "job.toml"), "-e", "2"], "job", "").job.epochs == 2


def test_an_unknown_key_in_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text("[section]\nwith = 8\n")
    with pytest.raises(UserError, match=r"job\.toml: unknown key section\.with; did you mean section\.width"):
        parse(Config, [f"--config={tmp_path / 'job.toml'}"], "job", "")


@pytest.mark.parametrize("arguments", [["--epoch", "3"], ["-e", "three"], ["--section.width", "1.5"]])
def test_bad_arguments_are_named_and_give_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        parse(Config, arguments, "job", "")
    assert error.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_the_segdist_command_lists_its_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in JOBS)


def test_an_unknown_job_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "unknown job 'trian'" in capsys.readouterr().err


@pytest.mark.parametrize("job", JOBS)
def test_help_of_every_job_does_not_import_torch(job: str) -> None:
    code = (
        "import sys; from jobs.cli import main\n"
        "try: main([sys.argv[1], '--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules and 'wandb' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code, job], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"segdist {job}" in done.stdout


@pytest.mark.parametrize("script", ["make_shards", "train", "infer"])
def test_jobs_can_be_run_as_scripts(script: str) -> None:
    done = subprocess.run([sys.executable, f"jobs/{script}.py", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_epochs_override_the_steps_of_a_preset(tmp_path: Path) -> None:
    assert find_preset(["--preset", "fast"])[1]["steps"] == 600
    assert find_preset(["--preset", "fast", "--preset=paper"])[0] == "paper"
    assert "steps" not in find_preset(["--preset", "fast", "-e", "3"])[1]
    (tmp_path / "job.toml").write_text("epochs = 3")
    assert "steps" not in find_preset(["--preset=fast", "--config", str(tmp_path / "job.toml")])[1]


def test_short_flags_of_the_method_are_accepted() -> None:
    from segdist.training.config import TrainConfig

    config = parse(TrainConfig, ["-e", "100", "-l", "0.01", "-b", "16", "-f", "patches_s96"], "train", "").job
    assert (config.epochs, config.optim.lr, config.batch_size, config.data) == (100, 0.01, 16, ("patches_s96",))


@pytest.mark.parametrize("script", ["train", "infer"])
def test_torchrun_does_not_consume_our_flags(script: str) -> None:
    """torchrun's parser expands abbreviated flags even after the script, so `--run` would be ambiguous."""
    from torch.distributed.run import get_args_parser

    parser = get_args_parser()
    helped = subprocess.run([sys.executable, f"jobs/{script}.py", "--help"], capture_output=True, text=True, check=True)
    flags = set(re.findall(r"(?<![\w-])--[\w.-]+", helped.stdout))
    assert "--name" in flags or "--model" in flags
    for flag in flags:
        assert parser.parse_args(["--standalone", f"jobs/{script}.py", flag, "x"]).training_script_args == [flag, "x"]


def test_the_command_to_reproduce_a_run_launches_the_same_number_of_ranks() -> None:
    from jobs.command_line import launch_command
    from segdist.ranks.launchers import RankEnvironment

    def command(**ranks: int) -> str:
        return " ".join(launch_command("train", ["-f", "cells"], RankEnvironment(launcher="slurm", **ranks)))

    assert command() == "segdist train -f cells"
    assert command(world_size=2, local_world_size=2) == (
        "torchrun --standalone --nproc-per-node=2 jobs/train.py -f cells"
    )
    assert command(world_size=16, local_world_size=8) == (
        "torchrun --nnodes=2 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 --nproc-per-node=8 jobs/train.py -f cells"
    )


def test_every_exit_code_is_documented() -> None:
    from segdist.core import exit_codes

    page = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
    codes = {value for name, value in vars(exit_codes).items() if name.isupper() and isinstance(value, int)}
    assert codes == {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
