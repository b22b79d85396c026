"""Run jobs one after another on this machine, as if started by hand; each command is printed first."""

import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jobs.command_line import parse
from segdist.core.exit_codes import FINISHED, STOPPED
from segdist.core.json_values import JsonObject
from segdist.core.parsing import write_settings
from segdist.core.terminal import say
from segdist.inference.config import InferConfig
from segdist.set_job import MakeShardsJob
from segdist.training.config import TrainConfig
from segdist.training.presets import find_preset
from slurm.torchrun import run_here

JOBS = Path(__file__).resolve().parent
CONFIGS: dict[str, type[object]] = {"make_shards": MakeShardsJob, "train": TrainConfig, "infer": InferConfig}


@dataclass(frozen=True)
class Step:
    """One job."""

    job: str
    """The job's module."""
    ranks: int
    arguments: list[str]
    settings: JsonObject = field(default_factory=dict)
    """Settings from its table; options take precedence."""
    needs: Path | None = None
    """A file from an earlier step that this step's plan requires."""


def check_steps(steps: Sequence[Step]) -> None:
    """Raises UserError for settings that a later job would refuse, before the first one starts."""
    with tempfile.TemporaryDirectory() as folder:
        for step in steps:
            file = Path(folder) / f"[{step.job}].json"
            write_settings(file, step.settings)
            arguments = ["--config", str(file), *step.arguments]
            preset, values = find_preset(arguments) if step.job == "train" else ("", {})
            parse(CONFIGS[step.job], arguments, step.job, "", preset=preset, preset_values=values)


def run_steps(steps: Sequence[Step], record: Path, *, dry_run: bool = False) -> int:
    """Run the jobs; returns the first exit code that is not 0.

    Args:
        record: folder for the files that pass the jobs their settings.
        dry_run: only plan; nothing is left behind.
    """
    with tempfile.TemporaryDirectory() as draft:
        for number, step in enumerate(steps, start=1):
            if dry_run and step.needs and not step.needs.exists():
                say(f"{step.job}: can be planned once {step.needs} exists")
                continue
            arguments = step.arguments
            if step.settings:
                file = (Path(draft) if dry_run else record) / f"{step.job}.json"
                write_settings(file, step.settings)
                arguments = ["--config", str(file), *arguments]
            if dry_run:
                arguments = [*arguments, "--dry-run"]
            words = [str(JOBS / f"{step.job}.py"), *arguments]
            launcher = f"torchrun --standalone --nproc-per-node={step.ranks}" if step.ranks > 1 else "python"
            say(f"\n[{number}/{len(steps)}] {launcher} {shlex.join(words)}")
            code = run_here([sys.executable, *words], step.ranks)
            if code == STOPPED:
                say("stopped; the same command resumes from there")
            if code:
                return code
    return FINISHED
