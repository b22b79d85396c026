"""A training run: build its parts, rehearse, loop, keep the best.

One optimizer step sees the global batch B. The sample and augmentation in each of its slots are functions of
(seed, epoch, step, slot), as is all other randomness. So a run resumes exactly from the tensors of the `Learner` and a
few counters.
"""

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from itertools import islice

import torch

from segdist.core.choice import Choice
from segdist.core.errors import UserError
from segdist.core.files import remove_leftovers
from segdist.core.json_values import JsonObject
from segdist.core.owner import owned
from segdist.core.paths import BEST_MODEL, CHECKPOINTS, LAST_MODEL, run_dir
from segdist.core.states import State
from segdist.core.terminal import say, warn
from segdist.core.waiting import WaitEnded
from segdist.model.card import ModelCard
from segdist.model.compiling import explain_compiler_errors
from segdist.model.factory import stride_multiple
from segdist.model.model_file import save_model
from segdist.model.trust import note_trained_with
from segdist.ranks.process_group import Ranks
from segdist.ranks.profiler import Profile
from segdist.ranks.stop import StopRequest
from segdist.tracking import Trackers, check_trackers, open_trackers
from segdist.tracking.job_log import data_facts, log_contact_sheets
from segdist.training.augmentation import Augmenter
from segdist.training.bad_batch import bad_labels_named, stop_for_bad_gradients
from segdist.training.checkpoint import CheckpointFolder, StateDict
from segdist.training.config import TrainConfig
from segdist.training.data import TrainingData
from segdist.training.data_parallel import DataParallel
from segdist.training.exact_sums import ExactSums
from segdist.training.exactness import fix_threads, machine
from segdist.training.initial_model import make_initial_model, resolve
from segdist.training.learner import Engine, Learner
from segdist.training.losses import Loss, class_weights
from segdist.training.optimizers import learning_rate
from segdist.training.preprocess import Preprocessor
from segdist.training.rehearsal import Rehearsal
from segdist.training.reporter import RunReporter
from segdist.training.run_files import check_same_run, describe_run, length_of_run, write_description
from segdist.training.validation import ValidationResult, evaluate


@dataclass
class Counters:
    """Progress of a run; kept in the checkpoint."""

    step: int = 0
    """Optimizer steps done, including skipped ones."""
    best_mean_iou: float = -1.0
    best_epoch: int = 0
    best_step: int = 0
    seconds: float = 0.0
    """Training time, summed over all starts."""
    metrics_position: int = 0
    """Length of `metrics.jsonl` in bytes."""


class Trainer:
    """One rank's part of a training run. Collective.

    Args:
        config: already validated.
        command: the command line that would repeat the run; stored in its description.
        choices: the choices of the preset `auto` that the config contains.

    Raises:
        UserError: any error found before the run folder is created or changed; see `TrainingData`,
            `make_initial_model`, `check_same_run`.
    """

    def __init__(
        self, config: TrainConfig, ranks: Ranks, command: Sequence[str] = (), choices: Sequence[Choice] = ()
    ) -> None:
        config, precision = resolve(ranks.on_main(lambda: length_of_run(config)), ranks.device)
        if config.exact:
            config = fix_threads(config, ranks)
        if config.deterministic:
            # Without this variable, torch refuses matrix products on GPUs.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        check_trackers(config.tracking)
        self.config, self.ranks, self.precision, self.run_dir = config, ranks, precision, config.run_dir
        pin = ranks.device.type == "cuda"
        self.data = data = ranks.on_all(lambda: TrainingData(config, ranks.rank, ranks.world_size, pin=pin))
        self.steps_per_epoch = data.steps_per_epoch
        model = make_initial_model(config, data, ranks)
        self.loss = Loss(config.loss, class_weights(config.loss, data.pixels).to(ranks.device))
        where = machine(ranks.device) if config.exact else None
        check_same_run(self.run_dir, describe_run(config, data.identity(), precision.name, machine=where))
        if config.exact:
            first = data.slots.start // config.grain
            engine: Engine = ExactSums(
                model, self.loss, precision, ranks, config.seed, config.batch_size // config.grain, first
            )
        else:
            engine = DataParallel(model, self.loss, precision, ranks, config.seed, config.compile)
        self.learner = Learner(model, config.optim, engine, precision, ranks)
        # The same number on all ranks, although some may have one sample fewer.
        parts = min(config.accumulate, config.batch_size // ranks.world_size)
        self.preprocess = Preprocessor(
            data.mean,
            data.std,
            Augmenter(config.augment, config.seed),
            ranks.device,
            accumulate=parts,
            grain=config.grain if config.exact else 0,
            channels_last=config.channels_last,
        )
        multiple = stride_multiple(config.model, model)
        self.rehearsal = Rehearsal(
            config, ranks, data, self.learner, self.preprocess, self.loss, precision, multiple, self._score
        )
        if config.minutes and not config.steps:
            length = self.rehearsal.length_in(config.minutes)
            every = config.validate_every or length.validate_every
            self.config = config = replace(config, steps=length.steps, validate_every=every)
        self.steps = config.steps or data.steps
        self.description = describe_run(config, data.identity(), precision.name, command, where, choices)
        self.card = ModelCard(
            model=config.model,
            classes=data.classes,
            channels=data.channels,
            dtype=data.dtype,
            patch=data.patch,
            mean=data.mean,
            std=data.std,
            stride_multiple=multiple,
            run=self.run_dir.name,
            scale=data.scale,
            tile=config.inference.tile,
            overlap=config.inference.overlap,
            flips=("all" if config.augment.upside_down else "sideways") if config.inference.flips else "none",
            held_out=data.held_out,
        )
        self.checkpoints = CheckpointFolder(
            self.run_dir / CHECKPOINTS, config.checkpoint.keep_last, config.checkpoint.background
        )
        self.reporter = RunReporter(
            self.run_dir, data.classes, config.batch_size, ranks, self._start_trackers, config.quiet
        )
        self.stop = StopRequest(ranks)
        self.counters = Counters()
        self._started = self._checkpointed = time.monotonic()

    def train(self) -> State:
        """Train to the end or until asked to stop; resumes a stopped run. Collective.

        Returns:
            "finished", or "stopped" if a signal asked for it; the same config resumes from there.

        Raises:
            UserError: another job is writing to the run folder; too many consecutive steps with bad gradients; the
                batch doesn't fit into memory; torch.compile fails.
        """
        with ExitStack() as stack:
            self.ranks.on_main(lambda: stack.enter_context(owned(self.run_dir, "segdist train")))
            return self._train()

    def _train(self) -> State:
        self._open_run_dir()
        try:
            self._resume()
            state: State = "finished"
            if self.counters.step < self.steps:
                with self.stop.listening(), explain_compiler_errors():
                    if self.config.check:
                        self.rehearsal.run(self._try_checkpoint)
                    with self.reporter.progress(self.counters.step, self.steps), closing(self.checkpoints):
                        try:
                            state = self._loop()
                        except WaitEnded as ended:
                            if self.ranks.world_size > 1:  # the other ranks are in mid-step
                                raise
                            warn(str(ended))
                            self._save()
                            state = "stopped"
                self._check_last_checkpoint(state)
        except BaseException:
            self.reporter.finished("failed", **self.summary())
            raise
        self.reporter.finished(state, **self.summary())
        return state

    def summary(self) -> JsonObject:
        """State of the run, for `summary.json`."""
        at = self.counters
        return {
            "step": at.step,
            "steps": self.steps,
            "epochs": at.step // self.steps_per_epoch,
            "best_mean_iou": at.best_mean_iou if at.best_mean_iou >= 0 else None,
            "best_epoch": at.best_epoch,
            "best_step": at.best_step,
            "seconds": round(at.seconds, 1),
        }

    def _loop(self) -> State:
        at, config = self.counters, self.config
        profiler = Profile(config.profile, self.run_dir, self.ranks)
        with closing(self.data.batches(at.step)) as batches, profiler:
            for batch in self.reporter.waiting_for(islice(batches, self.steps - at.step)):
                epoch = at.step // self.steps_per_epoch
                self.ranks.at("forward pass", at.step + 1)
                rate = learning_rate(config.optim, at.step, self.steps)
                with bad_labels_named(batch, len(self.data.classes)):
                    self.learner.step(self.preprocess.training(batch), rate, at.step)
                at.step += 1
                self.ranks.at("figures, validation, checkpoint or the next batch")
                profiler.step()
                self.reporter.stepped(epoch)
                last = at.step == self.steps
                if at.step % config.log_every == 0 or last:
                    figures = self.learner.figures(self.reporter.waited)
                    self.reporter.trained(at.step, epoch, rate, figures)
                    if figures.skipped_in_a_row >= config.max_bad_steps:
                        stop_for_bad_gradients(self.run_dir, batch, figures.skipped_in_a_row, self.ranks)
                if at.step % (config.validate_every or self.steps_per_epoch) == 0 or last:
                    self._validate(epoch)
                elif at.step % self.steps_per_epoch == 0:
                    self.reporter.epoch_ended(at.step, epoch)
                if config.exact and (at.step % config.checksum_every == 0 or last or self._checkpoint_is_due()):
                    self.reporter.weights(at.step, epoch, self.learner.model)
                stopping, overdue = self.stop.agreed(save=self._checkpoint_is_overdue())
                if stopping or overdue or last or self._checkpoint_is_due():
                    self._save()
                if stopping and not last:
                    return "stopped"
        return "finished"

    def _open_run_dir(self) -> None:
        """Create or reopen the run folder, once all ranks have checked its contents."""
        self.ranks.barrier()
        if self.ranks.is_main:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.run_dir)
            note_trained_with(self.config.model.factory)
            write_description(self.run_dir, self.description)
            if not self.config.quiet:
                say(self._headline())
            self.reporter.open()
        self.ranks.barrier()
        self.ranks.keep_heartbeat(self.run_dir)

    def _start_trackers(self, run_id: str | None) -> Trackers:
        trackers = open_trackers(
            self.config.tracking,
            self.run_dir,
            self.description | {"shard_sets": data_facts(self.data.sets)},
            run_id=run_id,
            is_main=self.ranks.is_main,
            job_type="train",
            classes=self.data.classes,
        )
        log_contact_sheets(trackers, self.data.sets)
        return trackers

    def _resume(self) -> None:
        """Resume from the newest intact checkpoint; all ranks use the one that rank 0 found."""
        state = self.ranks.on_main(lambda: self.checkpoints.load_latest(self._fault_of))
        if state is not None:
            self.learner.load_state_dict(state["learner"])
            self.counters = Counters(**state["counters"])
        elif self.config.init_from and not run_dir(self.config.init_from).exists():
            raise UserError(
                f"--init-from {self.config.init_from}: missing, and {self.run_dir} has no intact checkpoint; restore "
                "the weights, or start a new run without them"
            )
        self.reporter.started(self.counters.step, self.steps, self.counters.metrics_position, state)

    def _validate(self, epoch: int) -> None:
        """Score the validation patches and save the model. Collective."""
        result = self._score(self.learner.best_model)
        latest = None if self.learner.average is None else self._score(self.learner.model)
        if not self.ranks.is_main:
            return
        at = self.counters
        score = None if result is None else result.mean_iou
        card = replace(self.card, epoch=epoch, step=at.step, score=score)
        self._keep(LAST_MODEL, card)
        if (score is None or score > at.best_mean_iou) and self._keep(BEST_MODEL, card):
            at.best_mean_iou, at.best_epoch, at.best_step = score if score is not None else -1.0, epoch, at.step
        self.reporter.validated(at.step, epoch, result, latest)

    def _keep(self, name: str, card: ModelCard) -> bool:
        """Write the model file `name`. False if the write fails, which doesn't stop the run."""
        try:
            save_model(self.run_dir / name, self.learner.best_model.state_dict(), card)
        except OSError as error:
            warn(f"{self.run_dir / name}: could not write the model of step {self.counters.step}: {error.strerror}")
            return False
        return True

    def _score(self, model: torch.nn.Module, batches: int | None = None) -> ValidationResult | None:
        self.learner.share_buffers(model)
        if self.data.validation is None:
            return None
        return evaluate(
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
        """Measured by the clock of rank 0."""
        minutes = self.config.checkpoint.every_minutes
        return self.ranks.is_main and bool(minutes) and time.monotonic() - self._checkpointed > 60 * minutes

    def _save(self) -> None:
        """Save a checkpoint. Rank 0 writes it; the others don't wait. Collective."""
        now = time.monotonic()
        self.counters.seconds += now - self._started
        self._started = self._checkpointed = now
        position = self.reporter.position()
        self.counters.metrics_position = position or 0
        state = self._state()
        # A checkpoint without its rows in metrics.jsonl would leave a gap in the history.
        if self.ranks.is_main and position is not None:
            self.checkpoints.save(state, self.counters.step)

    def _try_checkpoint(self) -> None:
        """Write a checkpoint and delete it. Collective."""
        state = self._state()
        if self.ranks.is_main:
            self.checkpoints.try_out(state)

    def _state(self) -> StateDict:
        """Everything the next step depends on. Collective."""
        return {
            "learner": self.learner.state_dict(),
            "counters": asdict(self.counters),
            "trackers": self.reporter.tracker_state(),
        }

    def _fault_of(self, state: StateDict) -> str:
        """Why a checkpoint can't belong to this run; "" if it can."""
        weights, own = state.get("learner", {}).get("net"), self.learner.model.state_dict()
        if not isinstance(weights, dict) or weights.keys() != own.keys():
            return "it is for another model"
        other = [name for name, value in own.items() if getattr(weights[name], "shape", None) != value.shape]
        return f"it is for another model: {other[0]} has another shape" if other else ""

    def _check_last_checkpoint(self, state: State) -> None:
        last = self.checkpoints.last_saved
        if state == "finished" and self.ranks.is_main and last != self.counters.step:
            raise UserError(
                f"{self.run_dir}: step {self.counters.step} is done, but no checkpoint could be written after step "
                f"{last}; free disk space, then run the same command to resume from there"
            )

    def _headline(self) -> str:
        data, config = self.data, self.config
        return (
            f"{self.run_dir}: {data.samples['train']} patches of {data.patch} x {data.patch} for training, "
            f"{data.samples['val']} for validation; {self.steps} steps, batch size {config.batch_size}, "
            f"{data.steps_per_epoch} steps per epoch\n"
            f"{self.ranks.world_size} ranks on {self.ranks.device.type}, {torch.get_num_threads()} "
            f"threads each, {self.precision.name} ({self.precision.reason})"
        )
