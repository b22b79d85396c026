"""`segdist submit`: put a job, or the whole pipeline, into the queue of a Slurm cluster.

    segdist submit train --profile gpu-node -- -f cells -e 100
    segdist submit make-shards --profile mini --tasks 8 -- -f cells --images.folder scans …
    segdist submit infer --profile mini -- -m cells --images scans
    segdist submit pipeline --profile mini --config jobs/demo.toml --shard-tasks 4

What stands behind `--` are the job's own options, as in `segdist train …`. `--dry-run` prints the sbatch script and
submits nothing. `--cluster local` runs the same on this machine without Slurm. How things stand: `segdist queue`.
"""

import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jobs.command_line import parse
from jobs.entry import run_job
from jobs.links import Submission, infer_links, missing_inputs, pipeline_links, shard_links, train_links
from jobs.pipeline import tracked
from segdist.core.errors import UserError
from segdist.core.exit_codes import FINISHED
from segdist.core.paths import PIPELINE, RUNS, plain_name
from segdist.core.terminal import say, warn
from segdist.model.config import JsonTable
from slurm.pipeline import Link, submit_chain
from slurm.submit import sbatch_script

SINGLE = {"make-shards": shard_links, "train": train_links, "infer": infer_links}


@dataclass(frozen=True)
class SubmitConfig:
    """Put one job into the queue."""

    profile: str = ""
    """Cluster profile: a TOML file, or one of the examples in slurm/profiles (docs/cluster.md)."""
    cluster: Literal["slurm", "local", "debug"] = "slurm"
    """slurm; local: this machine, one job after another; debug: this very process, one rank."""
    tasks: int = 1
    """make-shards and infer: share the work between so many tasks of a job array, and merge in a last job."""
    stage_to: str = ""
    """train: copy the shard set to this folder of each node first, and read it there ('$TMPDIR')."""

    def validate(self) -> None:
        """Raises UserError for values that can't work."""
        if self.tasks < 1:
            raise UserError(f"--tasks {self.tasks}: at least 1")


@dataclass(frozen=True)
class SubmitPipelineConfig:
    """Put the chain make-shards → train → infer → report into the queue. Each waits for the one before."""

    name: str = "pipeline"
    """Name of the shard set (data/NAME) and of the run (runs/NAME)."""
    processes: int = 2
    """Ranks, for `segdist pipeline`, which reads the same file; here the profile says how many."""
    profile: str = ""
    """Cluster profile: a TOML file, or one of the examples in slurm/profiles (docs/cluster.md)."""
    cluster: Literal["slurm", "local", "debug"] = "slurm"
    """slurm; local: this machine, one job after another; debug: this very process, one rank."""
    shard_tasks: int = 1
    """Make the shards in so many tasks of a job array."""
    infer_tasks: int = 1
    """Segment in so many tasks of a job array, for very many images; 1: one job of several ranks."""
    stage_to: str = ""
    """Copy the shard set to this folder of each node before training, and read it there ('$TMPDIR')."""
    make_shards: JsonTable = field(default_factory=dict)
    """Settings of `segdist make-shards`: a TOML table, or JSON on the command line."""
    train: JsonTable = field(default_factory=dict)
    """Settings of `segdist train`, and `preset`."""
    infer: JsonTable = field(default_factory=dict)
    """Settings of `segdist infer`."""
    tracking: JsonTable = field(default_factory=dict)
    """Settings of all three jobs' trackers, where a job's own table has none (`{"wandb": "off"}`)."""

    def validate(self) -> None:
        """Raises UserError for values that can't work."""
        plain_name(self.name)
        for flag, value in (("--shard-tasks", self.shard_tasks), ("--infer-tasks", self.infer_tasks)):
            if value < 1:
                raise UserError(f"{flag} {value}: at least 1")


def main(argv: list[str] | None = None) -> int:
    """Submit; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print((__doc__ or "").strip(), f"\n\njobs: {', '.join([*SINGLE, 'pipeline'])}; `segdist submit JOB --help`")
        return FINISHED
    job, *rest = arguments
    own, job_arguments = _split(rest)
    if job == "pipeline":
        return _submit_pipeline(own, job_arguments)
    if job in SINGLE:
        return _submit_single(job, own, job_arguments)
    raise UserError(f"segdist submit {job}: choose from {', '.join([*SINGLE, 'pipeline'])}")


def _submit_single(job: str, own: list[str], job_arguments: list[str]) -> int:
    command = parse(SubmitConfig, own, f"submit {job}", __doc__ or "")
    config = command.job
    submission = Submission(config.profile, config.cluster, config.tasks, config.stage_to)
    links = SINGLE[job](submission, job_arguments)
    for missing in missing_inputs(job, job_arguments):
        warn(f"{missing} is not there: the job fails unless it is when it starts")
    return _place(links, config.cluster, command.dry_run)


def _submit_pipeline(own: list[str], job_arguments: list[str]) -> int:
    if job_arguments:
        raise UserError(
            "segdist submit pipeline takes the jobs' settings from the tables of its --config, not after --"
        )
    command = parse(SubmitPipelineConfig, own, "submit pipeline", __doc__ or "")
    config = command.job
    submission = Submission(config.profile, config.cluster, config.shard_tasks, config.stage_to)
    tables = tracked(config.tracking, {"make_shards": config.make_shards, "train": config.train, "infer": config.infer})
    with tempfile.TemporaryDirectory() as draft:
        settings = Path(draft) if command.dry_run else RUNS / config.name / PIPELINE
        links = pipeline_links(submission, config.name, **tables, infer_tasks=config.infer_tasks, settings=settings)
        return _place(links, config.cluster, command.dry_run)


def _place(links: list[Link], cluster: Literal["slurm", "local", "debug"], dry_run: bool) -> int:
    folder = Path(os.path.relpath(links[0].order.folder))
    if dry_run:
        for number, link in enumerate(links):
            waits = f", after {links[number - 1].order.name}" if number else ""
            print(f"##### {link.order.name}{waits}\n{sbatch_script(link.order)}")
        return FINISHED
    if cluster != "slurm" and len(links) > 1:
        say("no Slurm: the links run here, one after another")
    placed = submit_chain(links, cluster, say)
    say(f"\nrun     {folder.parent}")
    say(f"logs    {folder}/<job>_<rank>_log.out and .err")
    if cluster == "slurm":
        waiting = [item.record.job_id for item in placed if item.what != "finished already"]
        say(f"watch   segdist queue {folder.parent.name}")
        if waiting:
            # Of a pipeline the training's: it takes longest.
            told = next((item for item in placed if item.link.order.name == "train"), placed[-1])
            say(f"        tail -F {folder}/{told.record.job_id}_0_log.out")
            say(f"cancel  scancel {' '.join(waiting)}")
    return FINISHED


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]


if __name__ == "__main__":
    sys.exit(run_job(main))
