"""Make a shard set and log it to trackers, which the room `shards` can't import."""

from dataclasses import dataclass, field, fields

from segdist.core.paths import MANIFEST
from segdist.core.terminal import warn
from segdist.tracking.config import TrackingConfig
from shards.build.build import make_shards
from shards.build.config import MakeShardsConfig
from shards.build.plan import without_validation
from shards.manifest import Manifest


@dataclass(frozen=True)
class MakeShardsJob(MakeShardsConfig):
    """Settings of `segdist make-shards`: the shard set and its tracking."""

    tracking: TrackingConfig = field(default_factory=lambda: TrackingConfig(wandb="off"))
    """Off by default, because training also logs its shard sets; for pipelines that want a separate run."""

    @property
    def shard_set(self) -> MakeShardsConfig:
        """The settings of the set alone."""
        return MakeShardsConfig(**{item.name: getattr(self, item.name) for item in fields(MakeShardsConfig)})


def make_tracked_set(job: MakeShardsJob, *, quiet: bool = False) -> Manifest | None:
    """Build the set, or the part given by `job.task`, and log it; see `shards.build.build.make_shards`.

    Raises:
        UserError: also if a tracker isn't available.
    """
    config, tracking = job.shard_set, job.tracking
    wanted = bool(tracking.names) and tracking.wandb != "off" and not config.task
    if wanted:  # import trackers only if needed
        from segdist.tracking import check_trackers

        check_trackers(tracking)
    new = config.overwrite or not (config.folder / MANIFEST).exists()
    manifest = make_shards(config, quiet=quiet)
    if manifest is None:
        return None
    if not manifest.samples("val"):
        training = [pair.image for pair in manifest.sources["train"]]
        warn(f"{config.folder}: {without_validation(training, len(manifest.sources['val']))}")
    if wanted and new:
        from segdist.tracking.job_log import log_shard_set

        log_shard_set(tracking, config.folder)
    return manifest
