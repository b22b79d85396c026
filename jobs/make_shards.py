"""Make a shard set: draw or read labeled images, cut patches, write tars and the manifest.

    segdist make-shards -f synthetic                         synthetic images, nothing else needed
    segdist make-shards -f cells --images.folder DIR …       your own images and masks (docs/data.md)
    segdist make-shards -f cells … --task 3/8                one task of a job array; finally once with --finish

Run it again to finish an interrupted set. It needs no ranks: `--processes` sets the number of cores.
"""

import sys

from jobs.command_line import parse, print_config
from jobs.entry import run_job
from segdist.core.exit_codes import FINISHED
from segdist.core.terminal import say
from segdist.set_job import MakeShardsJob, make_tracked_set
from shards.build.mask_check import check_masks
from shards.build.plan import plan_lines
from shards.build.set_folder import is_finished
from shards.build.work import find_work


def main(argv: list[str] | None = None) -> int:
    """Build the set, or with `--dry-run` show the plan; returns the exit code."""
    description = "Draw or read labeled images, cut patches, write a shard set."
    command = parse(MakeShardsJob, argv, "make-shards", description)
    config = command.job.shard_set
    if command.dry_run:
        print_config(command.job)
        work = find_work(config, say)
        task, tasks = config.task_share()
        check_masks(work.sources[task::tasks], work.config)
        print("plan:", *plan_lines(work), sep="\n  ")
        if not config.overwrite and is_finished(work, quiet=True):
            say(f"{config.folder}: already finished, with this recipe")
        return FINISHED
    manifest = make_tracked_set(command.job)
    if manifest is None:
        say(f"{config.folder}: task {config.task} is done; once all are, run the same command with --finish")
    else:
        samples = ", ".join(f"{manifest.samples(split)} {split}" for split in ("train", "val"))
        say(f"{config.folder}: {samples} patches, {len(manifest.sources['test'])} test images")
    return FINISHED


if __name__ == "__main__":
    sys.exit(run_job(main))
