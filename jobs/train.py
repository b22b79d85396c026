"""`segdist train`: train on a shard set; `torchrun jobs/train.py` for several ranks.

One process on this machine, with all its cores or its GPU:

    segdist train -f cells                          everything chosen from the data and the device, 20 minutes
    segdist train -f cells --minutes 60
    segdist train -f synthetic --preset fast

One node with 8 GPUs; two nodes, started on each of them:

    torchrun --standalone --nproc-per-node=8 jobs/train.py -f synthetic -e 100
    torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 jobs/train.py -f synthetic

Started again with the same settings, a stopped run resumes; with more `--epochs`, a finished run is extended.
"""

import sys

from jobs.command_line import Command, launch_command, parse, print_config
from jobs.entry import run_job
from segdist.core.choice import Choice
from segdist.core.exit_codes import FINISHED, STOPPED
from segdist.core.json_values import JsonObject
from segdist.core.terminal import say
from segdist.ranks.launchers import torchrun_would_restart
from segdist.training.config import TrainConfig
from segdist.training.presets import AUTO, PAPER, find_preset, paper_because_of_epochs


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    preset, values = find_preset(arguments)

    def read(values: JsonObject) -> Command[TrainConfig]:
        return parse(TrainConfig, arguments, "train", __doc__ or "", preset=preset, preset_values=values)

    command = read(values)
    config, choices = command.job, list[Choice]()
    # Heavy imports come after parsing, so that --help doesn't wait for torch.
    from segdist.ranks.process_group import ranks
    from segdist.training.job import choice_lines, train, with_choices

    with ranks(config.device, config.threads, meeting_place=config.run_dir) as these:
        if preset == AUTO:
            config, choices = with_choices(config, lambda values: read(values).job, values, these)
        if these.is_main and (command.dry_run or not config.quiet):
            if paper_because_of_epochs(arguments):
                say(f"--epochs without --preset: the preset {PAPER}, the method as published")
            for line in choice_lines(choices):
                say(line)
        if command.dry_run:
            from segdist.training.plan import training_plan

            print_config(config)
            print(training_plan(config))
            return FINISHED
        run = train(config, these, launch_command("train", arguments, these.environment), choices)
    if run.state == "stopped" and not torchrun_would_restart():
        return STOPPED
    return FINISHED


if __name__ == "__main__":
    sys.exit(run_job(main))
