"""Settings of the trackers: the section `[tracking]` of the train and infer configs."""

import os
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from segdist.core.errors import UserError
from segdist.core.ranges import Positive, check_ranges

TRACKERS = ("wandb", "tensorboard")
LONGEST_TAG, LONGEST_PROJECT = 64, 128
NOT_IN_PROJECTS, NOT_IN_RUN_IDS = "/\\#?%:", ":;,#?/'"
WANDB_MODES = ("online", "offline", "disabled", "dryrun", "run", "shared")
"""W&B's own limits. It would report a violation only after the run starts, or even only when the data is uploaded."""


@dataclass(frozen=True)
class TrackingConfig:
    """Where a run's curves and pictures go, in addition to `metrics.jsonl`."""

    trackers: Annotated[str, tyro.conf.arg(aliases=["--trackers"])] = "wandb"
    """Trackers to use, separated by commas: wandb, tensorboard; or none. TensorBoard needs an extra:
    pip install -e '.[tensorboard]'."""
    wandb: Annotated[Literal["auto", "online", "offline", "off"], tyro.conf.arg(aliases=["--wandb"])] = "auto"
    """auto: online with a key and a server that responds, otherwise offline. online: the same, but a missing key is an
    error. offline: only files in the run folder, for `wandb sync`. off: no tracking. auto respects $WANDB_MODE."""
    project: Annotated[str, tyro.conf.arg(aliases=["--wandb-project"])] = ""
    """W&B project; default $WANDB_PROJECT, else segdist."""
    entity: Annotated[str, tyro.conf.arg(aliases=["--wandb-entity"])] = ""
    """W&B user or team; default $WANDB_ENTITY, else the owner of the key."""
    group: Annotated[str, tyro.conf.arg(aliases=["--wandb-group"])] = ""
    """W&B group, which keeps the jobs of one pipeline together; default $WANDB_RUN_GROUP, else the run's name."""
    tags: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--wandb-tags"])] = ()
    """W&B tags."""
    images: Annotated[Literal["some", "none"], tyro.conf.arg(aliases=["--wandb-images"])] = "some"
    """none: no images, masks or figures go to any tracker (for data that must stay on site)."""
    artifacts: bool = False
    """Send the best model and the last checkpoint as W&B artifacts at the end."""
    start_timeout: Positive = 5.0
    """Seconds to wait for the W&B server at the start before the run goes offline."""
    finish_timeout: Positive = 20.0
    """Seconds that W&B can keep uploading at the end; the rest stays in the run folder for `wandb sync`."""

    @property
    def names(self) -> tuple[str, ...]:
        """The selected trackers."""
        wanted = tuple(name.strip() for name in self.trackers.split(","))
        return () if wanted == ("none",) else wanted

    def validate(self) -> None:
        """Refuse invalid settings.

        Raises:
            UserError: an unknown tracker; time limits that W&B would read as "no limit"; a tag, a project, a mode or a
                run id, from the settings or the environment, that W&B would refuse later.
        """
        check_ranges(self, section="tracking")
        for name in self.names:
            if name not in TRACKERS:
                raise UserError(
                    f"--trackers {self.trackers}: no tracker {name!r}; choose from {', '.join(TRACKERS)}, none"
                )
        if "wandb" in self.names and self.wandb != "off":
            self._check_what_wandb_would_refuse()

    def _check_what_wandb_would_refuse(self) -> None:
        for tag in self.tags:
            if not 1 <= len(tag) <= LONGEST_TAG:
                raise UserError(
                    f"--wandb-tags {tag!r}: a W&B tag has 1 to {LONGEST_TAG} characters, but this one has {len(tag)}"
                )
        for flag, project in (("--wandb-project", self.project), ("$WANDB_PROJECT", os.environ.get("WANDB_PROJECT"))):
            found = [character for character in NOT_IN_PROJECTS if character in (project or "")]
            if found or len(project or "") > LONGEST_PROJECT:
                raise UserError(
                    f"{flag} {project!r}: a W&B project name has at most {LONGEST_PROJECT} characters and none of "
                    f"{' '.join(NOT_IN_PROJECTS)}"
                )
        mode = os.environ.get("WANDB_MODE")
        if mode and mode not in WANDB_MODES:
            raise UserError(f"$WANDB_MODE is {mode!r}: choose one of {', '.join(WANDB_MODES)}, or unset it")
        run_id = os.environ.get("WANDB_RUN_ID", "")
        if any(character in NOT_IN_RUN_IDS for character in run_id) or run_id != run_id.strip():
            raise UserError(
                f"$WANDB_RUN_ID is {run_id!r}: a W&B id has none of {' '.join(NOT_IN_RUN_IDS)} and no spaces around it"
            )
