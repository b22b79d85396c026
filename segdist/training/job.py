"""The training job: the choices of the preset `auto`, the training itself, then the report and the scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from segdist.core.choice import Choice, in_force, settings_of
from segdist.core.json_values import JsonObject
from segdist.core.parsing import merge, to_dict
from segdist.core.paths import BEST_MODEL, METRICS
from segdist.core.states import State
from segdist.ranks.process_group import Ranks
from segdist.runs.record import RunRecord, read_rows
from segdist.runs.report import refresh_report
from segdist.training.config import TrainConfig
from segdist.training.facts import chosen_for
from segdist.training.presets import PAPER, preset_values
from segdist.training.trainer import Trainer


@dataclass(frozen=True)
class TrainedRun:
    """The results of a training run; the same on all ranks."""

    folder: Path
    """The run folder."""
    state: State
    """"finished", or "stopped" if a signal asked for it: the same call resumes the run."""
    scores: JsonObject | None
    """Scores of the best model on the validation patches: `mean_iou`, `pixel_accuracy`, `loss`, `iou` and `dice` per
    class, `confusion_matrix` (rows: true classes), `step`, `epoch`. None without validation patches."""

    @property
    def model(self) -> Path:
        """The model file: weights and model card."""
        return self.folder / BEST_MODEL


def with_choices(
    config: TrainConfig, read: Callable[[JsonObject], TrainConfig], values: JsonObject, ranks: Ranks
) -> tuple[TrainConfig, list[Choice]]:
    """The config completed by the preset `auto`, and the choices the user didn't override. Collective.

    Args:
        config: as read without choices.
        read: makes the config from a preset's settings, overridden by the user's.
        values: the preset's settings so far.
    """
    found = chosen_for(config, ranks)
    if found is None:  # the run was started before `auto` existed, with the settings of `paper`
        return read(preset_values(PAPER)), []
    config = read(merge(values, settings_of(found)))
    return config, in_force(found, to_dict(config))


def choice_lines(choices: Sequence[Choice]) -> list[str]:
    """What was chosen and why, one line per choice."""
    return ["chosen:", *(f"  {choice.line()}" for choice in choices)] if choices else []


def train(config: TrainConfig, ranks: Ranks, command: Sequence[str], choices: Sequence[Choice]) -> TrainedRun:
    """Train to the end or until asked to stop, then write the report. Collective; see `Trainer`.

    Args:
        command: the command line that would repeat the run, for its description.
    """
    state = Trainer(config, ranks, command, choices).train()
    if ranks.is_main:
        refresh_report(config.run_dir, quiet=config.quiet)
    return TrainedRun(config.run_dir, state, ranks.on_main(lambda: _scores(config.run_dir)))


def _scores(run_dir: Path) -> JsonObject | None:
    rows = read_rows(run_dir / METRICS)
    return RunRecord(run_dir, val=[row for row in rows if row["kind"] == "val"]).best
