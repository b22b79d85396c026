"""A training run's shard sets combined: facts about them, a rank's batches, validation batches."""

import math
from collections.abc import Generator, Iterable

from segdist.core.errors import UserError
from segdist.core.fold import parse_fold
from segdist.core.paths import set_dir
from segdist.model.card import HeldOut
from segdist.training.config import TrainConfig
from shards.manifest import ClassInfo
from shards.read.background_check import BackgroundCheck
from shards.read.batches import Batch, Order, Samplable, TrainBatches, ValidationBatches
from shards.read.folds import FoldSet
from shards.read.mixing import MixedOrder, MixedSet
from shards.read.order import SampleOrder
from shards.read.reader import ShardSet

VALIDATION_PATCHES, VALIDATION_PIXELS = 32, 2**20
"""Limits of a validation batch: small enough to divide a few hundred patches among ranks, and to fit large patches."""


class TrainingData:
    """Facts about the training data, and the batches of rank `rank` of `world_size`.

    Each rank checks the sizes of its share of the shards, so construct it in `Ranks.on_all`.

    Raises:
        UserError: a set is missing, unfinished or damaged; the sets are incompatible; fewer samples than a batch.
    """

    def __init__(self, config: TrainConfig, rank: int = 0, world_size: int = 1, pin: bool = False) -> None:
        share = slice(rank, None, world_size)
        self.sets = sets = [ShardSet(set_dir(name), check=config.data_check, share=share) for name in config.data]
        source: Samplable = without_fold(sets[0], config) if len(sets) == 1 else MixedSet(sets)
        whole = source.manifest
        self.classes: tuple[ClassInfo, ...] = whole.classes
        self.channels, self.dtype, self.patch = whole.channels, whole.dtype, whole.patch
        self.scale = whole.scale
        self.mean, self.std, self.pixels = whole.mean, whole.std, whole.pixels
        self._order: Order
        if len(sets) == 1:
            self._order = SampleOrder(source.sizes("train"), config.batch_size, config.seed, flips=config.flips)
        else:
            weights = config.data_weights or [item.manifest.samples("train") for item in sets]
            sizes = [item.sizes("train") for item in sets]
            self._order = MixedOrder(
                sizes, weights, config.batch_size, config.seed, config.epoch_steps, flips=config.flips
            )
        self.held_out: HeldOut | None = None
        """The images that the model is not trained on, for its card."""
        if isinstance(source, FoldSet):
            fold = source.fold
            self.held_out = HeldOut(fold.number, fold.count, fold.seed, sets[0].manifest.fingerprint)
        self.steps_per_epoch = config.epoch_steps or self._order.steps_per_epoch
        """Steps between validations; the run calls this an epoch."""
        self.steps = config.steps or config.epochs * self.steps_per_epoch
        """Optimizer steps of the whole run."""
        self.samples = {split: whole.samples(split) for split in ("train", "val")}
        """Number of patches in all sets, by split."""
        grain = config.grain if config.exact else 1
        self._train = TrainBatches(source, self._order, rank, world_size, grain=grain, pin=pin)
        self.slots = self._train.slots
        """This rank's part of every global batch."""
        local = [item for item in sets if config.data_check == "sizes" and not item.is_remote]
        self.check = BackgroundCheck(local, rank, world_size)
        self.validation: Iterable[Batch] | None = None
        self.validation_batches = 0
        """The largest number of validation batches on any rank."""
        if self.samples["val"]:
            # Capped, because one rank computes all of it, while ranks share a global batch. Independent of the number
            # of ranks, so that the results are bit-identical on any number.
            size = max(1, min(config.batch_size, VALIDATION_PATCHES, VALIDATION_PIXELS // self.patch**2))
            self.validation = ValidationBatches(source, size, rank, world_size)
            batches = math.ceil(self.samples["val"] / size)
            self.validation_batches = math.ceil(batches / world_size)

    def batches(self, step: int) -> Generator[Batch, None, None]:
        """This rank's part of every global batch from step `step` of the run, endlessly."""
        self.check.start()
        epoch, first = divmod(step, self._order.steps_per_epoch)
        while True:
            for batch in self._train.batches(epoch, first):
                if self.check.problem:
                    damaged = UserError(self.check.problem)
                    damaged.on_this_rank = True
                    raise damaged
                yield batch
            epoch, first = epoch + 1, 0

    def identity(self) -> list[dict[str, str]]:
        """Path and fingerprint of each set, for the run folder."""
        return [{"path": str(item.folder), "fingerprint": item.manifest.fingerprint} for item in self.sets]


def without_fold(shard_set: ShardSet, config: TrainConfig) -> Samplable:
    """The set; in a cross-validation, without the images that the run's fold holds out."""
    return FoldSet(shard_set, parse_fold(config.fold, config.seed)) if config.fold else shard_set
