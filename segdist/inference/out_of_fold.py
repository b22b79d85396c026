"""Which model of a cross-validation segments which labeled image: the one not trained on it."""

from collections.abc import Sequence

from segdist.core.errors import UserError
from segdist.model.card import HeldOut
from shards.read.folds import Partition, divide
from shards.read.reader import ShardSet


def divide_as_trained(shard_set: ShardSet, held_out: Sequence[HeldOut | None]) -> Partition:
    """The labeled images of the set, divided into folds as in training.

    Args:
        held_out: from each model's card.

    Raises:
        UserError: the models don't cover each fold of one cross-validation of this set exactly once.
    """
    known = [item for item in held_out if item is not None]
    if len(known) < len(held_out):
        raise UserError("--out-of-fold: not all models come from a cross-validation; give the folder of its folds")
    first = known[0]
    if any((item.folds, item.seed, item.data) != (first.folds, first.seed, first.data) for item in known):
        raise UserError("--out-of-fold: the models come from different cross-validations; give the folder of one")
    if (folds := sorted(item.fold for item in known)) != list(range(1, first.folds + 1)):
        raise UserError(
            f"--out-of-fold: the models are of folds {', '.join(map(str, folds))} of {first.folds}; give each fold once"
        )
    if shard_set.manifest.fingerprint != first.data:
        raise UserError(
            f"--data {shard_set.folder}: not the set that the models were trained on, so its images may be among their "
            "training images; give that set"
        )
    return divide(shard_set, first.folds, first.seed)
