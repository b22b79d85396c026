"""`segdist submit`: submit a job, or the whole pipeline, to a Slurm cluster.

    segdist submit train --profile gpu-node -- -f cells -e 100
    segdist submit make-shards --profile mini --tasks 8 -- -f cells --images.folder scans …
    segdist submit infer --profile mini -- -m cells --images scans
    segdist submit pipeline cells --profile mini --images.folder photos --masks.folder labels --minutes 20
    segdist submit pipeline --profile mini --config jobs/demo.toml --shard-tasks 4
    segdist submit cross-validate --profile mini -f cells --folds 5 --minutes 20

The job's own options follow `--`, as in `segdist train …`. `--dry-run` prints the sbatch script and submits nothing.
`--cluster local` runs the same on this machine without Slurm. `segdist queue` shows the state.
"""

import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Literal

from jobs.command_line import parse
from jobs.config import SubmitConfig, SubmitFoldsConfig, SubmitPipelineConfig, name_first
from jobs.entry import run_job
from jobs.links import Submission, fold_links, infer_links, missing_inputs, pipeline_links, shard_links, train_links
from segdist.core.errors import UserError
from segdist.core.exit_codes import FINISHED
from segdist.core.paths import PIPELINE, RUNS
from segdist.core.terminal import say, warn
from slurm.pipeline import Link, submit_chain
from slurm.submit import job_folder, sbatch_script

SINGLE = {"make-shards": shard_links, "train": train_links, "infer": infer_links}
SUBMITTED_JOBS = (*SINGLE, "cross-validate", "pipeline")


def main(argv: list[str] | None = None) -> int:
    """Submit; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print((__doc__ or "").strip(), f"\n\njobs: {', '.join(SUBMITTED_JOBS)}; `segdist submit JOB --help`")
        return FINISHED
    job, *rest = arguments
    own, job_arguments = _split(rest)
    if job == "pipeline":
        return _submit_pipeline(own, job_arguments)
    if job == "cross-validate":
        return _submit_folds(own, job_arguments)
    if job in SINGLE:
        return _submit_single(job, own, job_arguments)
    raise UserError(f"segdist submit {job}: choose from {', '.join(SUBMITTED_JOBS)}")


def _submit_single(job: str, own: list[str], job_arguments: list[str]) -> int:
    command = parse(SubmitConfig, own, f"submit {job}", __doc__ or "")
    config = command.job
    if "--dry-run" in job_arguments:
        raise UserError(
            "--dry-run after -- would submit a job that only prints its plan; put it before -- to print the sbatch "
            "script and submit nothing"
        )
    submission = Submission(config.profile, config.cluster, config.tasks, config.stage_to)
    links = SINGLE[job](submission, job_arguments)
    for missing in missing_inputs(job, job_arguments):
        warn(f"{missing} does not exist: the job will fail unless it does by the time it starts")
    return _place(links, config.cluster, command.dry_run)


def _submit_pipeline(own: list[str], job_arguments: list[str]) -> int:
    if job_arguments:
        raise UserError(
            "segdist submit pipeline takes make-shards' settings as options and those of all jobs from --config, "
            "but none after --"
        )
    command = parse(SubmitPipelineConfig, name_first(own), "submit pipeline", __doc__ or "")
    config = command.job
    submission = Submission(config.profile, config.cluster, config.shard_tasks, config.stage_to)
    tables = config.tables()
    with tempfile.TemporaryDirectory() as draft:
        settings = Path(draft) if command.dry_run else RUNS / config.name / PIPELINE
        links = pipeline_links(submission, config.name, **tables, infer_tasks=config.infer_tasks, settings=settings)
        return _place(links, config.cluster, command.dry_run)


def _submit_folds(own: list[str], job_arguments: list[str]) -> int:
    if job_arguments:
        raise UserError("segdist submit cross-validate takes its settings as options, not after --")
    command = parse(SubmitFoldsConfig, own, "submit cross-validate", __doc__ or "")
    config = command.job
    if missing := missing_inputs("train", ["-f", config.data]):
        raise UserError(f"{missing[0]} does not exist: make the shard set first, because its images are the folds")
    with tempfile.TemporaryDirectory() as draft:
        settings = Path(draft) if command.dry_run else config.folder / PIPELINE
        links = fold_links(Submission(config.profile, config.cluster), config, settings)
        return _place(links, config.cluster, command.dry_run)


def _place(links: list[Link], cluster: Literal["slurm", "local", "debug"], dry_run: bool) -> int:
    folder = Path(os.path.relpath(links[0].order.folder))
    if dry_run:
        for number, link in enumerate(links):
            waits = f", after {links[number - 1].order.name}" if number else ""
            print(f"##### {link.order.name}{waits}\n{sbatch_script(link.order)}")
        return FINISHED
    if cluster != "slurm" and len(links) > 1:
        say("no Slurm: the jobs run here, one after another")
    placed = submit_chain(links, cluster, say)
    say(f"\nrun     {folder.parent}")
    say(f"logs    {folder}/<job>{'/<node>' if cluster == 'slurm' else ''}_<rank>_log.out and .err")
    if cluster == "slurm":
        waiting = [item.record.job_id for item in placed if item.what != "finished already"]
        say(f"watch   segdist queue {shlex.quote(folder.parent.name)}")
        if waiting:
            # For a pipeline, show the training's log, because it takes longest.
            told = next((item for item in placed if item.link.order.name == "train"), placed[-1])
            say(f"        tail -F {shlex.quote(str(job_folder(folder, told.record.task_ids[0]) / 'rank0.out'))}")
            say(f"cancel  scancel {' '.join(waiting)}")
    return FINISHED


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]


if __name__ == "__main__":
    sys.exit(run_job(main))
