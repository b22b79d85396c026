"""`segdist train`: train on a shard set; `torchrun jobs/train.py` for several ranks.

One process on this machine, with all its cores or its GPU:

    segdist train -f synthetic --preset fast

One node with 8 GPUs; two nodes, started on each of them:

    torchrun --standalone --nproc-per-node=8 jobs/train.py -f synthetic -e 100
    torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 jobs/train.py -f synthetic

Started again with the same settings, a run that was stopped goes on where it was; with more `--epochs`, a finished
one is extended.
"""

import sys

from jobs.command_line import launch_command, parse, print_config
from jobs.entry import run_job
from segdist.core.exit_codes import FINISHED, STOPPED
from segdist.ranks.launchers import torchrun_would_restart
from segdist.training.config import TrainConfig
from segdist.training.presets import find_preset


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    preset, values = find_preset(arguments)
    command = parse(TrainConfig, arguments, "train", __doc__ or "", preset=preset, preset_values=values)
    # Heavy imports come after the command line: --help must not wait for torch.
    from segdist.ranks.process_group import ranks
    from segdist.runs.report import refresh_report
    from segdist.training.trainer import Trainer

    if command.dry_run:
        from segdist.training.plan import training_plan

        print_config(command.job)
        print(training_plan(command.job))
        return FINISHED
    with ranks(command.job.device, command.job.threads) as these:
        state = Trainer(command.job, these, launch_command("train", arguments, these.environment)).train()
        if these.is_main:
            refresh_report(command.job.run_dir, quiet=command.job.quiet)
    if state == "stopped" and not torchrun_would_restart():
        return STOPPED
    return FINISHED


if __name__ == "__main__":
    sys.exit(run_job(main))
