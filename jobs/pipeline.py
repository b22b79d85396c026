"""`segdist pipeline NAME`: make-shards → train → infer, one after another on this machine, and the report.

    segdist pipeline cells --images.folder photos --masks.folder labels --minutes 20
    segdist pipeline --config jobs/demo.toml

It takes the options of make-shards; anything not set is chosen automatically and printed with its reason.

Each job runs as it would by hand, after its command is printed. Finished work is reused: after an interruption, the
same command resumes. `--fresh` first deletes the shard set and the run of that name.

The config file's tables [make_shards], [train] and [infer] hold the settings of the three jobs; [tracking] applies to
the trackers of all three.
"""

import shutil
import sys

from jobs.command_line import parse, print_config
from jobs.config import PipelineConfig, name_first, without_preset
from jobs.entry import run_job
from jobs.steps import Step, check_steps, run_steps
from segdist.core.owner import owned
from segdist.core.paths import DATA, LAST_MODEL, MANIFEST, PIPELINE, RUNS


def main(argv: list[str] | None = None) -> int:
    """Run the jobs; returns the first exit code that is not 0."""
    arguments = name_first(sys.argv[1:] if argv is None else argv)
    command = parse(PipelineConfig, arguments, "pipeline", __doc__ or "")
    config = command.job
    run, data = RUNS / config.name, DATA / config.name
    steps = _steps(config, starts_over=command.dry_run and config.fresh)
    check_steps(steps)
    if command.dry_run:
        print_config(config)
    elif config.fresh:
        for folder in (run, data):
            if folder.exists():
                with owned(folder, "segdist pipeline --fresh"):
                    pass  # make sure that no other job is using it
                shutil.rmtree(folder, ignore_errors=True)
    return run_steps(steps, run / PIPELINE, dry_run=command.dry_run)


def _steps(config: PipelineConfig, *, starts_over: bool) -> list[Step]:
    """The jobs.

    Args:
        starts_over: plan as if the shard set were gone.
    """
    tables = config.tables()
    train, preset = without_preset(tables["train"])
    shards, run = DATA / config.name / MANIFEST, RUNS / config.name
    return [
        Step("make_shards", 1, ["-f", config.name, *(["--overwrite"] if starts_over else [])], tables["make_shards"]),
        Step("train", config.processes, ["-f", config.name, "--name", config.name, *preset], train, shards),
        Step("infer", config.processes, ["-m", config.name, "-f", config.name], tables["infer"], run / LAST_MODEL),
    ]


if __name__ == "__main__":
    sys.exit(run_job(main))
