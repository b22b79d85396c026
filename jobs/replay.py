"""`segdist replay`: compute a stretch of an exact run again, and say where its weights part from those recorded.

    segdist replay RUN --step 1200                   from the nearest checkpoint before step 1200
    segdist replay RUN --step 1200 --from-start      from the initial weights

RUN is a name below runs/ or a folder of a run that was trained with --exact, on any number of ranks; it is only read.
Replay takes any number of ranks as well: `torchrun --nproc-per-node=4 jobs/replay.py RUN --step 1200`. The exit code
is 0 where everything is as recorded, and 3 where it isn't.
"""

import sys

import tyro

from jobs.entry import run_job
from segdist.core.exit_codes import FINISHED, INCOMPLETE
from segdist.training.config import ReplayConfig

SHOWN = 5
"""So many of the tensors that differ are named."""


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    config = tyro.cli(ReplayConfig, args=argv, prog="segdist replay", description=__doc__)
    # Heavy imports come after the command line: --help must not wait for torch.
    from segdist.core.terminal import say
    from segdist.ranks.process_group import ranks
    from segdist.training.replay import config_to_replay, replay

    trained = config_to_replay(config)
    with ranks(trained.device, trained.threads, meeting_place=trained.run_dir) as these:
        done = replay(config, these)
        if not these.is_main:
            return INCOMPLETE if done.parted else FINISHED
    began = f"from step {done.first}" if done.first else "from the initial weights"
    where = f"{began} to step {done.step}, {len(done.compared)} recorded steps"
    if done.parted:
        more = f" and {len(done.parted) - SHOWN} more" if len(done.parted) > SHOWN else ""
        agreed = f"the last that agrees is {done.compared[-2]}" if len(done.compared) > 1 else "none before it agrees"
        say(
            f"{config.run}: {where}: the weights part at step {done.step} ({agreed}): "
            f"{', '.join(done.parted[:SHOWN])}{more}"
        )
        return INCOMPLETE
    if not done.compared:
        say(f"{config.run}: {where}: nothing to compare with; see --checksum-every of `segdist train`")
    else:
        say(f"{config.run}: {where}: the same weights, bit by bit")
    say(f"weights after step {done.step}: sha256 {done.sha256}")
    return FINISHED


if __name__ == "__main__":
    sys.exit(run_job(main))
