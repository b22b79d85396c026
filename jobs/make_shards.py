"""Make a shard set: draw or read labelled images, cut patches, write tars and the manifest.

    segdist make-shards -f synthetic                         drawn images, nothing else needed
    segdist make-shards -f cells --images.folder DIR …       your own images and masks (docs/data.md)
    segdist make-shards -f cells … --task 3/8                one task of a job array; then once with --finish

Running it again finishes what is missing. It needs no ranks: `--processes` says how many cores it takes.
"""

import sys

from jobs.command_line import parse, print_config
from jobs.exit_codes import FINISHED, run_job
from shards.build import make_shards
from shards.plan import make_plan
from shards.recipe import MakeShardsConfig
from shards.terminal import say


def main(argv: list[str] | None = None) -> int:
    """Build the set, or with `--dry-run` show what would be built; returns the exit code."""
    description = "Draw or read labelled images, cut patches, write a shard set."
    command = parse(MakeShardsConfig, argv, "make-shards", description)
    config = command.job
    if command.dry_run:
        print_config(config)
        print("plan:", *make_plan(config).describe(), sep="\n  ")
        return FINISHED
    manifest = make_shards(config)
    if manifest is None:
        say(f"{config.folder}: task {config.task} is done; when all are, run the same command with --finish")
    else:
        samples = ", ".join(f"{manifest.samples(split)} {split}" for split in ("train", "val"))
        say(f"{config.folder}: {samples} patches, {len(manifest.sources['test'])} test images")
    return FINISHED


if __name__ == "__main__":
    sys.exit(run_job(main))
