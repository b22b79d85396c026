"""`segdist infer`: segment images of any size with a trained model; `torchrun jobs/infer.py` for several ranks.

The held-out images of a shard set, with scores; a folder of your own images:

    segdist infer --model runs/synthetic --data synthetic
    segdist infer --model runs/synthetic --images scans/ --out predictions/scans
    segdist infer --model runs/one runs/two --images scans/ --out predictions/both

One node with 8 GPUs, one rank each:

    torchrun --standalone --nproc-per-node=8 jobs/infer.py --model runs/synthetic --images scans/

Started again, an interrupted job resumes: finished images are kept, and large ones continue near the last row. The
result has the same bits for any number of ranks (fp32, one kind of CPU and torch build, the same number of threads per
rank).
"""

import sys
import time

from jobs.command_line import parse, print_config
from jobs.entry import run_job
from segdist.core.exit_codes import FINISHED, INCOMPLETE
from segdist.inference.config import InferConfig
from segdist.model.card import inference_settings


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    command = parse(InferConfig, argv, "infer", __doc__ or "")
    # The models' cards give defaults, which the user's options override.
    command = parse(InferConfig, argv, "infer", __doc__ or "", preset_values=inference_settings(command.job.models))
    # Heavy imports come after the command line: --help must not wait for torch.
    from segdist.inference.job import PATIENCE, examine, infer
    from segdist.inference.printout import plan_text, summary_text
    from segdist.inference.publish import publish
    from segdist.ranks.process_group import ranks
    from segdist.tracking import check_trackers

    config = command.job
    check_trackers(config.tracking)  # now rather than after hours of work
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
            publish(config, result, these, time.monotonic() - began)
    return INCOMPLETE if result.failures else FINISHED


if __name__ == "__main__":
    sys.exit(run_job(main))
