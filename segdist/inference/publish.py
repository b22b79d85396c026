"""After an inference job: records its duration, sends its scores to trackers, and refreshes the report."""

from segdist.core.parsing import to_dict
from segdist.inference.config import InferConfig
from segdist.inference.job import Result
from segdist.ranks.process_group import Ranks
from segdist.runs.record import note_inference, read_run, run_of
from segdist.runs.report import refresh_report
from segdist.tracking.job_log import log_scores, tracking_of_inference


def publish(config: InferConfig, result: Result, ranks: Ranks, seconds: float) -> None:
    """Record the job, log its scores, and refresh the report of the run that the predictions belong to, or their own.

    Call on rank 0 only.
    """
    computed = result.reused < result.images
    if computed and not config.task:  # tasks of an array would all write to one file
        note_inference(
            result.folder,
            seconds=round(seconds, 1),
            images=result.images,
            reused=result.reused,
            ranks=ranks.world_size,
            device=str(ranks.device),
        )
    run = run_of(result.folder)
    if config.task or (result.scores is None and run == result.folder):
        return  # a task of an array has no scores yet; images without truth outside a run have nothing to report
    if result.scores is not None and computed:
        description = {"config": to_dict(config)}
        tracking = tracking_of_inference(config.tracking, read_run(run).config.get("tracking", {}))
        log_scores(tracking, result.folder, description, result.scores, run.resolve().name)
    refresh_report(run, quiet=config.quiet)
