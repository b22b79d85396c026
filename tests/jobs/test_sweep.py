"""The sweep in the docs: its trials are valid `segdist train` commands."""

import shlex
from pathlib import Path
from typing import Any

import yaml

from jobs.command_line import parse
from segdist.training.config import TrainConfig

SWEEP = Path(__file__).parents[2] / "docs" / "examples" / "sweep.yaml"


def value_of(parameter: dict[str, Any]) -> Any:
    """A value from the sweep."""
    return parameter["values"][0] if "values" in parameter else parameter["min"]


def test_every_trial_is_a_valid_train_command() -> None:
    sweep = yaml.safe_load(SWEEP.read_text())
    script = sweep["command"][3]
    assert sweep["command"][-1] == "${args}"
    arguments = [f"--{name}={value_of(parameter)}" for name, parameter in sweep["parameters"].items()]
    words = shlex.split(script)
    assert words[:3] == ["exec", "segdist", "train"]
    assert words[-1] == "$@"
    given = [word for word in words[3:-1] if word not in ("--preset", "fast")]
    config = parse(TrainConfig, [*given, *arguments], "train", "").job
    assert config.optim.lr == sweep["parameters"]["optim.lr"]["min"]
    assert config.model.width == sweep["parameters"]["model.width"]["values"][0]
    assert "WANDB_RUN_ID" in config.name


def test_the_metric_maximized_by_the_sweep_is_logged() -> None:
    sweep = yaml.safe_load(SWEEP.read_text())
    reporter = (SWEEP.parents[2] / "segdist" / "training" / "reporter.py").read_text()
    group, name = sweep["metric"]["name"].split("/")
    assert f'f"{group}/{{name}}"' in reporter
    assert f'"{name}"' in reporter
