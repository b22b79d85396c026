"""Which model of a cross-validation may segment which labeled image: the one that was not trained on it."""

from collections.abc import Sequence

from segdist.core.errors import UserError
from segdist.model.card import HeldOut
from shards.read.folds import Partition, divide
from shards.read.reader import ShardSet


def divide_as_trained(shard_set: ShardSet, held_out: Sequence[HeldOut | None]) -> Partition:
    """The labeled images of the set, divided as for the training of the models.

    Args:
        held_out: of each model, from its card.

    Raises:
        UserError: the models are not those of all folds of one cross-validation of this set.
    """
    known = [item for item in held_out if item is not None]
    if len(known) < len(held_out):
        raise UserError("--out-of-fold: a model that is none of a cross-validation; give the folder of its folds")
    first = known[0]
    if any((item.folds, item.seed, item.data) != (first.folds, first.seed, first.data) for item in known):
        raise UserError("--out-of-fold: models of different cross-validations; give the folder of the folds of one")
    if (folds := sorted(item.fold for item in known)) != list(range(1, first.folds + 1)):
        raise UserError(
            f"--out-of-fold: models of the folds {', '.join(map(str, folds))} of {first.folds}; it needs each fold once"
        )
    if shard_set.manifest.fingerprint != first.data:
        raise UserError(
            f"--data {shard_set.folder}: not the set that the models were trained on, so an image may be one of their "
            "training images; name that set"
        )
    return divide(shard_set, first.folds, first.seed)
