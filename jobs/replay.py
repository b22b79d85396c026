"""`segdist replay`: recompute part of an exact run, and report where its weights differ from the recorded ones.

    segdist replay RUN --step 1200                   from the nearest checkpoint before step 1200
    segdist replay RUN --step 1200 --from-start      from the initial weights

RUN is a name below runs/ or the folder of a run trained with --exact, on any number of ranks; it is only read. Replay
also runs on any number of ranks: `torchrun --nproc-per-node=4 jobs/replay.py RUN --step 1200`. The exit code is 0 if
everything matches the record, and 3 if not.
"""

import sys

import tyro

from jobs.entry import run_job
from segdist.core.exit_codes import FINISHED, INCOMPLETE
from segdist.training.config import ReplayConfig

SHOWN = 5
"""Maximum number of differing tensors to name."""


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    config = tyro.cli(ReplayConfig, args=argv, prog="segdist replay", description=__doc__)
    # Heavy imports come after parsing, so that --help doesn't wait for torch.
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
            f"{config.run}: {where}: the weights differ at step {done.step} ({agreed}): "
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
