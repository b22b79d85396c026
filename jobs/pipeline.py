"""`segdist pipeline NAME`: make-shards → train → infer, one after another on this machine, and the report.

    segdist pipeline cells --images.folder photos --masks.folder labels --minutes 20
    segdist pipeline --config jobs/demo.toml

It takes the options of make-shards; anything not set is chosen automatically and printed with its reason.

Each job runs as it would by hand, after its command is printed. Finished work is reused: after an interruption, the
same command resumes. `--fresh` first deletes the shard set and the run of that name.

The config file's tables [make_shards], [train] and [infer] hold the settings of the three jobs, [tracking] those of
the trackers of all three.
"""

import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from jobs.command_line import parse, print_config
from jobs.config import PipelineConfig, name_first
from jobs.entry import run_job
from segdist.core.exit_codes import FINISHED, STOPPED
from segdist.core.owner import owned
from segdist.core.parsing import write_settings
from segdist.core.paths import DATA, MANIFEST, PIPELINE, RUNS
from segdist.core.terminal import say
from segdist.inference.config import InferConfig
from segdist.set_job import MakeShardsJob
from segdist.training.config import TrainConfig
from segdist.training.presets import find_preset
from slurm.torchrun import run_here

JOBS = Path(__file__).resolve().parent
CONFIGS: dict[str, type[Any]] = {"make_shards": MakeShardsJob, "train": TrainConfig, "infer": InferConfig}

Step = tuple[str, int, dict[str, Any], list[str]]
"""A job: its module, ranks, settings from its table, options."""


def main(argv: list[str] | None = None) -> int:
    """Run the jobs; returns the first exit code that is not 0."""
    arguments = name_first(sys.argv[1:] if argv is None else argv)
    command = parse(PipelineConfig, arguments, "pipeline", __doc__ or "")
    config = command.job
    run, data = RUNS / config.name, DATA / config.name
    steps = _steps(config)
    _check(steps)  # now, not after the earlier jobs are done
    if command.dry_run:
        print_config(config)
    elif config.fresh:
        for folder in (run, data):
            if folder.exists():
                with owned(folder, "segdist pipeline --fresh"):
                    pass  # make sure that no other job is using it
                shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as draft:
        for number, (job, ranks, settings, arguments) in enumerate(steps, start=1):
            if command.dry_run and job != "make_shards" and not (data / MANIFEST).exists():
                say(f"{job}: can be planned once the shards exist")
                continue
            if settings:
                # In the run folder, as a record of the settings; a dry run leaves nothing behind.
                file = (Path(draft) if command.dry_run else run / PIPELINE) / f"{job}.json"
                write_settings(file, settings)
                arguments = ["--config", str(file), *arguments]
            if command.dry_run:
                arguments.append("--dry-run")
            words = [str(JOBS / f"{job}.py"), *arguments]
            launcher = f"torchrun --standalone --nproc-per-node={ranks}" if ranks > 1 else "python"
            say(f"\n[{number}/3] {launcher} {shlex.join(words)}")
            code = run_here([sys.executable, *words], ranks)
            if code == STOPPED:
                say("stopped; the same command resumes from there")
            if code:
                return code
    return FINISHED


def _steps(config: PipelineConfig) -> list[Step]:
    tables = config.tables()
    train = tables["train"]
    preset = ["--preset", train.pop("preset")] if "preset" in train else []
    return [
        ("make_shards", 1, tables["make_shards"], ["-f", config.name]),
        ("train", config.processes, train, ["-f", config.name, "--name", config.name, *preset]),
        ("infer", config.processes, tables["infer"], ["-m", config.name, "-f", config.name]),
    ]


def _check(steps: list[Step]) -> None:
    """Raises UserError for settings that a later job would refuse."""
    with tempfile.TemporaryDirectory() as folder:
        for job, _, settings, arguments in steps:
            file = Path(folder) / f"[{job}].json"
            write_settings(file, settings)
            arguments = ["--config", str(file), *arguments]
            preset, values = find_preset(arguments) if job == "train" else ("", {})
            parse(CONFIGS[job], arguments, job, "", preset=preset, preset_values=values)


if __name__ == "__main__":
    sys.exit(run_job(main))
