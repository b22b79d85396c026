"""Settings of the trackers: the section `[tracking]` of the train and infer configs."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from segdist.core.errors import UserError
from segdist.core.ranges import Positive, check_ranges

TRACKERS = ("wandb", "tensorboard")


@dataclass(frozen=True)
class TrackingConfig:
    """Where a run's curves and pictures go beside `metrics.jsonl`."""

    trackers: Annotated[str, tyro.conf.arg(aliases=["--trackers"])] = "wandb"
    """Which trackers to feed, with commas between them: wandb, tensorboard; or none. TensorBoard needs an extra:
    pip install -e '.[tensorboard]'."""
    wandb: Annotated[Literal["auto", "online", "offline", "off"], tyro.conf.arg(aliases=["--wandb"])] = "auto"
    """auto: online with a key and a server that answers, else offline. online: the same, but a missing key is an
    error. offline: files in the run folder only, for `wandb sync`. off: nothing. $WANDB_MODE counts for auto."""
    project: Annotated[str, tyro.conf.arg(aliases=["--wandb-project"])] = ""
    """W&B project; default $WANDB_PROJECT, else segdist."""
    entity: Annotated[str, tyro.conf.arg(aliases=["--wandb-entity"])] = ""
    """W&B user or team; default $WANDB_ENTITY, else the one that the key belongs to."""
    group: Annotated[str, tyro.conf.arg(aliases=["--wandb-group"])] = ""
    """W&B group, which keeps the jobs of one pipeline together; default $WANDB_RUN_GROUP, else the run's name."""
    tags: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--wandb-tags"])] = ()
    """W&B tags."""
    images: Annotated[Literal["some", "none"], tyro.conf.arg(aliases=["--wandb-images"])] = "some"
    """none: no pixel of an image, mask or figure goes to any tracker (for data that must not leave the building)."""
    artifacts: bool = False
    """Send the best model and the last checkpoint as W&B artifacts at the end."""
    start_timeout: Positive = 5.0
    """Seconds that the W&B server has to answer at the start, before the run goes offline."""
    finish_timeout: Positive = 20.0
    """Seconds that W&B may go on uploading at the end; the rest stays in the run folder for `wandb sync`."""

    @property
    def names(self) -> tuple[str, ...]:
        """The trackers that are wanted."""
        wanted = tuple(name.strip() for name in self.trackers.split(","))
        return () if wanted == ("none",) else wanted

    def validate(self) -> None:
        """Refuse what can't be.

        Raises:
            UserError: an unknown tracker; time limits that W&B would read as "no limit".
        """
        check_ranges(self, section="tracking")
        for name in self.names:
            if name not in TRACKERS:
                raise UserError(
                    f"--trackers {self.trackers}: no tracker {name!r}; choose from {', '.join(TRACKERS)}, none"
                )
