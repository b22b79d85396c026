"""`segdist train`: train on a shard set; `torchrun jobs/train.py` for several ranks.

One process on this machine, with all its cores or its GPU:

    segdist train -f cells                          everything chosen from the data and the device, 20 minutes
    segdist train -f cells --minutes 60
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
from segdist.core.choice import Choice, in_force, settings_of
from segdist.core.exit_codes import FINISHED, STOPPED
from segdist.core.parsing import merge, to_dict
from segdist.core.terminal import say
from segdist.ranks.launchers import torchrun_would_restart
from segdist.training.config import TrainConfig
from segdist.training.presets import AUTO, PAPER, find_preset, paper_because_of_epochs, preset_values


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    preset, values = find_preset(arguments)
    command = parse(TrainConfig, arguments, "train", __doc__ or "", preset=preset, preset_values=values)
    # Heavy imports come after the command line: --help must not wait for torch.
    from segdist.ranks.process_group import ranks
    from segdist.runs.report import refresh_report
    from segdist.training.facts import chosen_for
    from segdist.training.trainer import Trainer

    with ranks(command.job.device, command.job.threads, meeting_place=command.job.run_dir) as these:
        choices: list[Choice] = []
        if preset == AUTO:
            found = chosen_for(command.job, these)
            # A run that was begun before there was this preset has the settings of the other.
            values = preset_values(PAPER) if found is None else merge(values, settings_of(found))
            command = parse(TrainConfig, arguments, "train", __doc__ or "", preset=preset, preset_values=values)
            choices = in_force(found or [], to_dict(command.job))
        if these.is_main and (command.dry_run or not command.job.quiet):
            for line in _first_lines(arguments, choices):
                say(line)
        if command.dry_run:
            from segdist.training.plan import training_plan

            print_config(command.job)
            print(training_plan(command.job))
            return FINISHED
        state = Trainer(command.job, these, launch_command("train", arguments, these.environment), choices).train()
        if these.is_main:
            refresh_report(command.job.run_dir, quiet=command.job.quiet)
    if state == "stopped" and not torchrun_would_restart():
        return STOPPED
    return FINISHED


def _first_lines(arguments: list[str], choices: list[Choice]) -> list[str]:
    """What was chosen, before anything is done with it."""
    if paper_because_of_epochs(arguments):
        return [f"--epochs without --preset: the preset {PAPER}, the method as published"]
    return ["chosen:", *(f"  {choice.line()}" for choice in choices)] if choices else []


if __name__ == "__main__":
    sys.exit(run_job(main))
