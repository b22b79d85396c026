"""Make a shard set: draw or read labeled images, cut patches, write tars and the manifest.

    segdist make-shards -f synthetic                         drawn images, nothing else needed
    segdist make-shards -f cells --images.folder DIR …       your own images and masks (docs/data.md)
    segdist make-shards -f cells … --task 3/8                one task of a job array; then once with --finish

Running it again finishes what is missing. It needs no ranks: `--processes` says how many cores it takes.
"""

import sys
from dataclasses import dataclass, field, fields

from jobs.command_line import parse, print_config
from jobs.entry import run_job
from segdist.core.exit_codes import FINISHED
from segdist.core.paths import MANIFEST
from segdist.core.terminal import say, warn
from segdist.tracking.config import TrackingConfig
from shards.build.build import make_shards
from shards.build.config import MakeShardsConfig
from shards.build.mask_check import check_masks
from shards.build.plan import plan_lines, without_validation
from shards.build.work import find_work


@dataclass(frozen=True)
class MakeShardsJob(MakeShardsConfig):
    """Settings of `segdist make-shards`: those of the shard set, and of its tracking."""

    tracking: TrackingConfig = field(default_factory=lambda: TrackingConfig(wandb="off"))
    """Training logs what it learns from; a run of the set's own is for pipelines."""

    @property
    def shard_set(self) -> MakeShardsConfig:
        """The settings of the set alone."""
        return MakeShardsConfig(**{item.name: getattr(self, item.name) for item in fields(MakeShardsConfig)})


def main(argv: list[str] | None = None) -> int:
    """Build the set, or with `--dry-run` show what would be built; returns the exit code."""
    description = "Draw or read labeled images, cut patches, write a shard set."
    command = parse(MakeShardsJob, argv, "make-shards", description)
    config = command.job.shard_set
    if command.dry_run:
        print_config(command.job)
        work = find_work(config, say)
        task, tasks = config.task_share()
        check_masks(work.sources[task::tasks], work.config)
        print("plan:", *plan_lines(work), sep="\n  ")
        return FINISHED
    tracking = command.job.tracking
    wanted = bool(tracking.names) and tracking.wandb != "off" and not config.task
    if wanted:  # only then are trackers imported
        from segdist.tracking import check_trackers

        check_trackers(tracking)
    new = config.overwrite or not (config.folder / MANIFEST).exists()
    manifest = make_shards(config)
    if manifest is None:
        say(f"{config.folder}: task {config.task} is done; when all are, run the same command with --finish")
    else:
        samples = ", ".join(f"{manifest.samples(split)} {split}" for split in ("train", "val"))
        say(f"{config.folder}: {samples} patches, {len(manifest.sources['test'])} test images")
        if not manifest.samples("val"):
            training = [pair.image for pair in manifest.sources["train"]]
            warn(f"{config.folder}: {without_validation(training, len(manifest.sources['val']))}")
        if wanted and new:
            from segdist.tracking.job_log import log_shard_set

            log_shard_set(tracking, config.folder)
    return FINISHED


if __name__ == "__main__":
    sys.exit(run_job(main))
