"""Start from another run's weights, even if classes or channels differ."""

import torch
from torch import nn

from segdist.core.errors import UserError
from segdist.core.terminal import say
from segdist.model.card import ModelCard
from shards.manifest import ClassInfo


def take_over(
    source: tuple[dict[str, torch.Tensor], ModelCard],
    model: nn.Module,
    classes: tuple[ClassInfo, ...],
    speak: bool = True,
) -> list[str]:
    """Copy the weights whose names and shapes match into `model`.

    A class head of the same shape is not copied if the class names or their order differ: its rows would then stand for
    other classes.

    Args:
        source: the result of `load_weights`.
        classes: those of the new model.

    Returns:
        The names of the weights that kept their initial values.

    Raises:
        UserError: no weight matches.
    """
    weights, card = source
    same_classes = [info.name for info in card.classes] == [info.name for info in classes]
    own = model.state_dict()
    head = _head_names(own, len(classes))
    taken: dict[str, torch.Tensor] = {}
    for name, value in own.items():
        if name in weights and weights[name].shape == value.shape and (same_classes or name not in head):
            taken[name] = weights[name]
    left_out = [name for name in own if name not in taken]
    if not any(value.ndim > 1 for value in taken.values()):
        raise UserError(f"--init-from: no weight of that {card.model.factory} matches this model; use another file")
    model.load_state_dict(taken, strict=False)
    if speak:
        say(f"warm start: copied {len(taken)} of {len(own)} weights")
        if left_out:
            say("  newly initialized: " + ", ".join(left_out))
    return left_out


def _head_names(state: dict[str, torch.Tensor], num_classes: int) -> set[str]:
    """The last weight whose first dimension is the number of classes, and its bias."""
    names = [name for name, value in state.items() if value.ndim > 1 and len(value) == num_classes]
    if not names:
        return set()
    module = names[-1].rpartition(".")[0]
    return {name for name in state if name.rpartition(".")[0] == module}
