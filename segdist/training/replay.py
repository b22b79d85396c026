"""Recompute part of an exact run, and compare the weights with those that the run recorded."""

from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from segdist.core.errors import UserError
from segdist.core.json_values import JsonObject
from segdist.core.paths import METRICS
from segdist.core.ranges import check_ranges
from segdist.core.terminal import Progress
from segdist.ranks.process_group import Ranks
from segdist.runs.record import find_run, read_rows
from segdist.tracking import TrackingConfig
from segdist.training.checkpoint import StateDict, checkpoint_step, read_checkpoint
from segdist.training.checksums import checksum, differing, weights_row
from segdist.training.config import ReplayConfig, TrainConfig
from segdist.training.optimizers import learning_rate
from segdist.training.run_files import read_config
from segdist.training.trainer import Trainer


@dataclass
class Replay:
    """The result of a replay."""

    first: int
    """The step after which the replay began."""
    step: int
    """The last step that was computed."""
    sha256: str = ""
    """Checksum of the weights after `step`, as in `metrics.jsonl`."""
    compared: list[int] = field(default_factory=list)
    """The steps whose recorded weights were compared."""
    parted: list[str] = field(default_factory=list)
    """Names of tensors that differ after `step`; empty if none does."""


def config_to_replay(config: ReplayConfig) -> TrainConfig:
    """The config of an exact run, without tracking.

    Raises:
        UserError: there is no such run, or it isn't exact, or has fewer steps.
    """
    run_dir = find_run(config.run)
    trained = read_config(run_dir)
    if not trained.exact:
        raise UserError(
            f"{run_dir} was trained without --exact: its weights depend on the number of ranks, and no checksums of "
            "them were recorded"
        )
    check_ranges(config)
    data = config.data or trained.data
    return replace(trained, name=str(run_dir.absolute()), data=data, tracking=TrackingConfig(trackers="none"))


def replay(config: ReplayConfig, ranks: Ranks) -> Replay:
    """Recompute the steps up to `config.step`, and compare wherever the run recorded its weights. Collective.

    It begins at the nearest checkpoint before that step, or at the initial weights, and ends at the first difference.

    Raises:
        UserError: see `config_to_replay` and `Trainer`; the run has fewer steps.
    """
    trainer = Trainer(config_to_replay(config), ranks)
    if config.step > trainer.steps:
        raise UserError(f"--step {config.step}: {trainer.run_dir} has {trainer.steps} steps")
    rows = {row["step"]: row for row in read_rows(trainer.run_dir / METRICS) if row["kind"] == "weights"}
    kept = {checkpoint_step(path): path for path in trainer.checkpoints.paths()}
    state = None
    if not config.from_start:
        state = ranks.on_main(lambda: _newest([path for step, path in kept.items() if step < config.step]))
    if state is not None:
        trainer.learner.load_state_dict(state["learner"])
    first = 0 if state is None else int(state["counters"]["step"])
    done = Replay(first, first)
    with (
        closing(trainer.data.batches(first)) as batches,
        Progress("replay", total=config.step, unit="steps", quiet=not ranks.is_main, done=first) as progress,
    ):
        for batch in islice(batches, config.step - first):
            rate = learning_rate(trainer.config.optim, done.step, trainer.steps)
            trainer.learner.step(trainer.preprocess.training(batch), rate, done.step)
            done.step += 1
            progress.advance()
            if done.step in rows or done.step in kept:
                done.compared.append(done.step)
                done.parted = ranks.on_main(lambda: _compare(trainer, rows.get(done.step), kept.get(done.step)))
                if done.parted:
                    break
    done.sha256 = weights_row(trainer.learner.model)["sha256"]
    return done


def _newest(paths: list[Path]) -> StateDict | None:
    """The state in the newest intact checkpoint; unlike a resume, renames and removes nothing."""
    states = (read_checkpoint(path) for path in reversed(paths))
    return next((state for state in states if not isinstance(state, str)), None)


def _compare(trainer: Trainer, row: JsonObject | None, checkpoint: Path | None) -> list[str]:
    """Names of the tensors that differ from a recorded row, or from a checkpoint of that step."""
    model = trainer.learner.model
    if row is not None:
        return differing(model, row)
    assert checkpoint is not None
    state = read_checkpoint(checkpoint)
    if isinstance(state, str):
        raise UserError(f"{checkpoint}: damaged checkpoint ({state}); move it away to replay without it")
    there = state["learner"]["net"]
    return [name for name, value in model.state_dict().items() if checksum(value) != checksum(there[name])]
