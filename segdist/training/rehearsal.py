"""Trial steps before training, undone afterward, to detect failures early and to time a step."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import islice

from torch import nn

from segdist.core.terminal import warn
from segdist.model.precision import Precision
from segdist.ranks.process_group import Ranks
from segdist.training.bad_batch import bad_labels_named
from segdist.training.checkpoint import copy_to_cpu
from segdist.training.config import TrainConfig
from segdist.training.data import TrainingData
from segdist.training.learner import Learner
from segdist.training.losses import Loss
from segdist.training.model_errors import check_gradients, check_state, explain_model_errors
from segdist.training.out_of_memory import explain_out_of_memory, training_attempt
from segdist.training.pace import Length, fitting, since_start, timed
from segdist.training.preprocess import Preprocessor

USEFUL_STEPS = 100
"""`--minutes` prints a warning if fewer steps fit."""


class Rehearsal:
    """Trial steps with the real learner, whose state is then restored. Collective.

    Args:
        stride_multiple: the model's input sides must be multiples of it; used in out-of-memory advice.
        score: scores a model on the given number of validation batches.
    """

    def __init__(
        self,
        config: TrainConfig,
        ranks: Ranks,
        data: TrainingData,
        learner: Learner,
        preprocess: Preprocessor,
        loss: Loss,
        precision: Precision,
        stride_multiple: int,
        score: Callable[[nn.Module, int], object],
    ) -> None:
        self.config, self.ranks, self.data, self.learner, self.preprocess = config, ranks, data, learner, preprocess
        self.loss, self.precision, self.stride_multiple, self.score = loss, precision, stride_multiple, score

    def run(self, try_checkpoint: Callable[[], None]) -> None:
        """Try two training batches, one validation batch, and a checkpoint.

        A run that would fail at the end of its first epoch fails now. And since DDP fixes the order of its gradient
        buckets after the first step, a resumed run sums gradients in the same order as an uninterrupted one.

        Raises:
            UserError: the model can't be trained, the batch doesn't fit into memory, or a label is out of range.
        """
        with self._undone():
            self._steps(2)
            self.score(self.learner.best_model, 1)
            try_checkpoint()

    def step_seconds(self) -> float:
        """Seconds of a training step, reading its batch included; the same on all ranks.

        Raises:
            UserError: as `run`.
        """
        with self._undone():
            return timed(self._steps, self.ranks)

    def length_in(self, minutes: float) -> Length:
        """The number of steps that fit into `minutes`, including start-up and validation, based on timed steps."""
        with self._undone():
            step = timed(self._steps, self.ranks)
            began = time.monotonic()
            self.score(self.learner.best_model, 1)
            validation = (time.monotonic() - began) * self.data.validation_batches
        length = self.ranks.on_main(lambda: fitting(minutes, since_start(), step, validation))
        if self.ranks.is_main and length.steps < USEFUL_STEPS:
            warn(
                f"--minutes {minutes:g} leaves time for {length.steps} steps of {step:.2g} s, too few to learn much: "
                "allow more minutes, or lower --model.width"
            )
        return length

    def _steps(self, count: int) -> None:
        """Run `count` steps from the start at a learning rate of 0."""
        with closing(self.data.batches(0)) as batches:
            for number, batch in enumerate(islice(batches, count)):
                with bad_labels_named(batch, len(self.data.classes)):
                    self.learner.step(self.preprocess.training(batch), rate=0.0, number=number)
        self.learner.figures()  # waits for the device

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Restore the learner's state afterward; explain models that can't be trained or don't fit into memory."""
        config, world_size = self.config, self.ranks.world_size
        before = copy_to_cpu(self.learner.state_dict())
        attempt = training_attempt(self.learner.model, self.loss, self.precision, self.data.channels)
        out_of_memory = explain_out_of_memory(
            config.batch_size,
            config.accumulate,
            self.data.patch,
            self.stride_multiple,
            world_size,
            attempt,
            grain=config.grain if config.exact else 0,
        )
        with explain_model_errors(config.batch_size, config.accumulate, world_size), out_of_memory:
            self._try_model()
            yield
        self.learner.load_state_dict(before)

    def _try_model(self) -> None:
        """Refuse a model that can't be trained, before DDP waits for a gradient that never comes."""
        check_state(self.learner.model)
        with closing(self.data.batches(0)) as batches:
            batch = next(iter(batches))
            with bad_labels_named(batch, len(self.data.classes)), self.precision.autocast(self.ranks.device):
                first = self.preprocess.training(batch)[0]
                check_gradients(self.learner.model, self.loss, first, self.ranks, exact=self.config.exact)
