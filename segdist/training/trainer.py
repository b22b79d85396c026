"""The training job: set up, rehearse, loop, keep the best.

One optimizer step sees the global batch B; sample and augmentation of each of its slots are functions of
(seed, epoch, step, slot), and so is all other randomness: nothing but the tensors of the `Learner` and a few counters
has to be restored for a run to go on as if it had never been stopped.
"""

import time
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch

from segdist.core.errors import UserError
from segdist.core.keyed import Purpose, hash64
from segdist.core.paths import BEST_MODEL, LAST_MODEL, run_dir
from segdist.core.terminal import warn
from segdist.model.card import ModelCard
from segdist.model.compiling import explain_compiler_errors
from segdist.model.factory import build_model, stride_multiple
from segdist.model.model_file import load_model, save_model
from segdist.model.precision import Precision
from segdist.ranks.process_group import Ranks
from segdist.ranks.profiler import Profile
from segdist.ranks.stop import StopRequest
from segdist.training.augmentation import Augmenter
from segdist.training.bad_batch import stop_for_bad_gradients
from segdist.training.checkpoint import CheckpointFolder, copy_to_cpu
from segdist.training.config import TrainConfig
from segdist.training.data import TrainingData
from segdist.training.learner import Learner
from segdist.training.losses import Loss
from segdist.training.optimizers import learning_rate
from segdist.training.out_of_memory import explain_out_of_memory, training_attempt
from segdist.training.preprocess import Preprocessor
from segdist.training.reporter import RunReporter
from segdist.training.validation import ValidationResult, validate
from segdist.training.warm_start import take_over

State = Literal["finished", "stopped"]


@dataclass
class Counters:
    """Where a run stands; kept in the checkpoint."""

    step: int = 0
    """Optimizer steps done, skipped ones included."""
    best_mean_iou: float = -1.0
    best_epoch: int = 0
    best_step: int = 0
    seconds: float = 0.0
    """Time spent in training, over all starts."""
    metrics_position: int = 0
    """Length of `metrics.jsonl` in bytes."""


def make_model(config: TrainConfig, data: TrainingData) -> torch.nn.Module:
    """The model that the config describes for the classes and channels of the data, as its factory makes it.

    Raises:
        UserError: the factory doesn't work, or the model doesn't take patches of that size.
    """
    model = build_model(config.model, data.channels, len(data.classes))
    multiple = stride_multiple(config.model, model)
    if data.patch % multiple:
        raise UserError(
            f"the model needs image sides that are multiples of {multiple}, and the patches have {data.patch} "
            "pixels: make patches of another --patches.size, or lower --model.depth"
        )
    return model


def prepare_model(config: TrainConfig, data: TrainingData, ranks: Ranks) -> torch.nn.Module:
    """The model of a run with its initial weights, the same on all ranks, on the ranks' device.

    Raises:
        UserError: see `make_model`; nothing of a warm start fits.
    """
    torch.manual_seed(config.seed)
    model = make_model(config, data)
    if config.init_from:
        take_over(load_model(run_dir(config.init_from)), model, data.classes, speak=ranks.is_main)
    if config.sync_batch_norm and ranks.device.type == "cuda":
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    elif config.sync_batch_norm and ranks.is_main:
        warn("--sync-batch-norm works on GPUs only: here every rank normalizes by its own part of the batch")
    model = model.to(ranks.device)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks this one
    return model


class Run:
    """A training run in its folder, from one rank's point of view.

    Args:
        folder: the run folder; exists.
        config: checked, `model.width` resolved.
        model: see `prepare_model`.
        reporter: speaks on rank 0 and is silent elsewhere.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        data: TrainingData,
        model: torch.nn.Module,
        loss: Loss,
        precision: Precision,
        ranks: Ranks,
        reporter: RunReporter,
    ) -> None:
        self.folder, self.config, self.data, self.ranks, self.reporter = folder, config, data, ranks, reporter
        self.loss, self.precision = loss, precision
        self.steps_per_epoch = data.steps_per_epoch
        self.steps = data.steps
        self.learner = Learner(model, config, loss, precision, ranks)
        largest = torch.iinfo(getattr(torch, data.dtype)).max
        augmenter = Augmenter(config.augment, config.seed, full_scale=float(largest))
        # The same number on all ranks, of which some may have one sample less.
        parts = min(config.accumulate, config.batch_size // ranks.world_size)
        self.preprocess = Preprocessor(data.mean, data.std, augmenter, ranks.device, parts, config.channels_last)
        self.checkpoints = CheckpointFolder(
            folder / "checkpoints", config.checkpoint.keep_last, config.checkpoint.background
        )
        self.stop = StopRequest(ranks)
        self.counters = Counters()
        self._started = self._checkpointed = time.monotonic()

    def train(self) -> State:
        """Train to the end or to a request to stop. Collective.

        Raises:
            UserError: too many bad gradients in a row; the batch doesn't fit into memory; torch.compile fails.
        """
        self._resume()
        if self.counters.step >= self.steps:
            return "finished"
        with self.stop.listening(), explain_compiler_errors():
            if self.config.check:
                self._rehearse()
            with self.reporter.progress(self.counters.step, self.steps), closing(self.checkpoints):
                state = self._loop()
        if state == "finished" and self.ranks.is_main and self.checkpoints.last_step() != self.counters.step:
            raise UserError(
                f"{self.folder}: step {self.counters.step} is done, but the disk took no checkpoint after step "
                f"{self.checkpoints.last_step()}; make room, and the same command goes on from there"
            )
        return state

    def summary(self) -> dict[str, Any]:
        """How the run stands, for `summary.json`."""
        at = self.counters
        return {
            "step": at.step,
            "steps": self.steps,
            "epochs": at.step // self.steps_per_epoch,
            "best_mean_iou": at.best_mean_iou if at.best_step else None,
            "best_epoch": at.best_epoch,
            "best_step": at.best_step,
            "seconds": round(at.seconds, 1),
        }

    def _loop(self) -> State:
        at, config = self.counters, self.config
        profiler = Profile(config.profile, self.folder, self.ranks)
        with closing(self.data.batches(at.step)) as batches, profiler:
            for batch in self.reporter.waiting_for(islice(batches, self.steps - at.step)):
                epoch = at.step // self.steps_per_epoch
                rate = learning_rate(config.optim, at.step, self.steps)
                # Dropout and the like: a function of the step too, so that no generator has to be restored.
                torch.manual_seed(int(hash64(config.seed, Purpose.STEP, at.step, self.ranks.rank) >> 1))
                self.learner.step(self.preprocess.training(batch), rate, at.step)
                at.step += 1
                profiler.step()
                self.reporter.stepped(epoch)
                last = at.step == self.steps
                if at.step % config.log_every == 0 or last:
                    figures = self.learner.figures()
                    self.reporter.trained(at.step, epoch, rate, figures)
                    if figures.skipped_in_a_row >= config.max_bad_steps:
                        stop_for_bad_gradients(self.folder, batch, figures.skipped_in_a_row, self.ranks)
                if at.step % (config.validate_every or self.steps_per_epoch) == 0 or last:
                    self._validate(epoch)
                elif at.step % self.steps_per_epoch == 0:
                    self.reporter.epoch_ended(at.step, epoch)
                stopping, overdue = self.stop.agreed(save=self._checkpoint_is_overdue())
                if stopping or overdue or last or self._checkpoint_is_due():
                    self._save()
                if stopping and not last:
                    return "stopped"
        return "finished"

    def _resume(self) -> None:
        """Take up the newest whole checkpoint; all ranks the one that rank 0 found."""
        state = self.ranks.broadcast(self.checkpoints.load_latest() if self.ranks.is_main else None)
        if state is not None:
            self.learner.load_state_dict(state["learner"])
            self.counters = Counters(**state["counters"])
        self.reporter.started(self.counters.step, self.steps, self.counters.metrics_position, state)

    def _rehearse(self) -> None:
        """Two training batches, a validation batch and a checkpoint; then everything is put back.

        A run that would die at the end of its first epoch dies now. It goes through the same DDP module as the
        training, whose gradient buckets get their final order after the first step: a run that was stopped sums its
        gradients in the same order as one that was not.
        """
        before = copy_to_cpu(self.learner.state_dict())
        model, patch = self.learner.model, self.data.patch
        multiple = stride_multiple(self.config.model, model)
        attempt = training_attempt(model, self.loss, self.precision, self.data.channels)
        with (
            closing(self.data.batches(0)) as batches,
            explain_out_of_memory(self.config, patch, multiple, self.ranks.world_size, attempt),
        ):
            for number, batch in enumerate(islice(batches, 2)):
                self.learner.step(self.preprocess.training(batch), rate=0.0, number=number)
        self.learner.figures()
        self._score(self.learner.best_model, batches=1)
        state = self._state()
        if self.ranks.is_main:
            self.checkpoints.try_out(state)
        self.learner.load_state_dict(before)

    def _validate(self, epoch: int) -> None:
        """Score the validation patches and keep the model. Collective."""
        result = self._score(self.learner.best_model)
        latest = None if self.learner.average is None else self._score(self.learner.model)
        if not self.ranks.is_main:
            return
        at = self.counters
        score = None if result is None else result.mean_iou
        self._keep(LAST_MODEL, epoch, score)
        if (score is None or score > at.best_mean_iou) and self._keep(BEST_MODEL, epoch, score):
            at.best_mean_iou, at.best_epoch, at.best_step = score if score is not None else -1.0, epoch, at.step
        self.reporter.validated(at.step, epoch, result, latest)

    def _keep(self, name: str, epoch: int, score: float | None) -> bool:
        """Write the model file `name`; False where the disk refuses it, which is no reason to stop."""
        try:
            save_model(self.folder / name, self.learner.best_model.state_dict(), self._card(epoch, score))
        except OSError as error:
            warn(f"{self.folder / name} of step {self.counters.step} could not be written: {error.strerror}")
            return False
        return True

    def _score(self, model: torch.nn.Module, batches: int | None = None) -> ValidationResult | None:
        self.learner.share_buffers(model)
        if self.data.validation is None:
            return None
        return validate(
            model,
            islice(self.data.validation, batches),
            self.preprocess,
            self.loss,
            self.precision,
            self.ranks,
            len(self.data.classes),
        )

    def _checkpoint_is_due(self) -> bool:
        every, step = self.config.checkpoint.every_steps, self.counters.step
        return step % self.steps_per_epoch == 0 or bool(every and step % every == 0)

    def _checkpoint_is_overdue(self) -> bool:
        """By the clock of rank 0."""
        minutes = self.config.checkpoint.every_minutes
        return self.ranks.is_main and bool(minutes) and time.monotonic() - self._checkpointed > 60 * minutes

    def _save(self) -> None:
        """Checkpoint; rank 0 writes it and the others don't wait. Collective."""
        now = time.monotonic()
        self.counters.seconds += now - self._started
        self._started = self._checkpointed = now
        position = self.reporter.position()
        self.counters.metrics_position = position or 0
        state = self._state()
        # Without its rows of figures a checkpoint would leave a gap in the history.
        if self.ranks.is_main and position is not None:
            self.checkpoints.save(state, self.counters.step)

    def _state(self) -> dict[str, Any]:
        """Everything that the next step depends on. Collective."""
        return {
            "learner": self.learner.state_dict(),
            "counters": asdict(self.counters),
            "trackers": self.reporter.tracker_state(),
        }

    def _card(self, epoch: int, score: float | None) -> ModelCard:
        return ModelCard(
            model=self.config.model,
            classes=self.data.classes,
            channels=self.data.channels,
            dtype=self.data.dtype,
            patch=self.data.patch,
            mean=self.data.mean,
            std=self.data.std,
            stride_multiple=stride_multiple(self.config.model, self.learner.model),
            run=self.folder.name,
            epoch=epoch,
            step=self.counters.step,
            score=score,
        )
