"""`segdist infer`: segment images of any size with a trained model; `torchrun jobs/infer.py` for several ranks.

The held-out images of a shard set, with scores; a folder of images of one's own:

    segdist infer --model runs/synthetic --data synthetic
    segdist infer --model runs/synthetic --images scans/ --out predictions/scans

One node with 8 GPUs, one rank each:

    torchrun --standalone --nproc-per-node=8 jobs/infer.py --model runs/synthetic --images scans/

Started again, a job that was interrupted goes on where it was: finished images are kept, large ones continue near the
row that was reached. The result has the same bits for any number of ranks (fp32, one kind of CPU
and torch build, the same number of threads per rank).
"""

import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from jobs.command_line import parse, print_config
from jobs.entry import run_job
from segdist.core.exit_codes import FINISHED, INCOMPLETE
from segdist.inference.config import InferConfig, settings_in_card

if TYPE_CHECKING:
    from segdist.inference.job import Result

PATIENCE = timedelta(days=30)
"""How long a rank that is done waits for the others. One that died is noticed at once, by its closed connection."""


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    command = parse(InferConfig, argv, "infer", __doc__ or "")
    # What the model's card says, under what the user says.
    command = parse(InferConfig, argv, "infer", __doc__ or "", preset_values=settings_in_card(command.job.model))
    # Heavy imports come after the command line: --help must not wait for torch.
    from segdist.inference.job import examine, infer
    from segdist.inference.printout import plan_text, summary_text
    from segdist.ranks.process_group import ranks
    from segdist.runs.record import note_inference
    from segdist.tracking import check_trackers

    config = command.job
    check_trackers(config.tracking)  # and not when hours of work are done
    with ranks(config.device, config.threads, PATIENCE, config.meeting_place) as these:
        if command.dry_run:
            task = examine(config, these)
            if these.is_main:
                print_config(config)
                print(plan_text(task, these.world_size))
            return FINISHED
        began = time.monotonic()
        result = infer(config, these)
        if these.is_main:
            print(summary_text(result), flush=True)
            if result.reused < result.images and not config.task:  # tasks of an array would write into one file
                note_inference(
                    result.folder,
                    seconds=round(time.monotonic() - began, 1),
                    images=result.images,
                    reused=result.reused,
                    ranks=these.world_size,
                    device=str(these.device),
                )
            _tell(config, result)
    return INCOMPLETE if result.failures else FINISHED


def _tell(config: InferConfig, result: "Result") -> None:
    """Scores to the trackers, and the report of the run that the predictions belong to, or of themselves."""
    from segdist.core.parsing import to_dict
    from segdist.runs.record import read_run, run_of
    from segdist.runs.report import refresh_report
    from segdist.tracking.job_log import beside, log_scores

    run = run_of(result.folder)
    if config.task or (result.scores is None and run == result.folder):
        return  # a part of an array has no scores yet; images without truth outside of a run have nothing to report
    if result.scores is not None and result.reused < result.images:
        description = {"config": to_dict(config)}
        tracking = beside(config.tracking, read_run(run).config.get("tracking", {}))
        log_scores(tracking, result.folder, description, result.scores, run.resolve().name)
    refresh_report(run, quiet=config.quiet)


if __name__ == "__main__":
    sys.exit(run_job(main))
