"""A trained model in one file: safetensors weights with the card that says how to use them."""

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as save_safetensors

from segdist.core.errors import UserError
from segdist.core.files import whole_file
from segdist.core.model_header import CARD_KEY
from segdist.model.card import ModelCard, card_text, read_card, resolve_model_path
from segdist.model.factory import build_model

if TYPE_CHECKING:
    import torch
    from torch import nn


def save_model(path: Path, state: dict[str, "torch.Tensor"], card: ModelCard) -> None:
    """Write weights and card to `path`, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    data = save_safetensors(tensors, metadata={CARD_KEY: card_text(card)})
    with whole_file(path) as file:
        file.write(data)


def load_model(path: Path | str, device: str = "cpu") -> tuple["nn.Module", ModelCard]:
    """The model, in eval mode on `device`, and its card.

    Args:
        path: a model file, or a run folder (its best model).

    Raises:
        UserError: there is no such file, it is damaged, or its weights don't fit the model that its card names.
    """
    file = resolve_model_path(Path(path))
    card = read_card(file)
    model = build_model(card.model, card.channels, len(card.classes))
    try:
        model.load_state_dict(load_file(file, device=str(device)))
    except (RuntimeError, SafetensorError) as error:
        raise UserError(f"{file}: the weights don't fit {card.model.factory}: {error}") from None
    return model.to(device).eval(), card
