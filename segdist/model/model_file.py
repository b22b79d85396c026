"""A trained model in one file: safetensors weights with the card that says how to use them."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as save_safetensors

from segdist.core.errors import UserError
from segdist.core.files import whole_file
from segdist.core.model_header import CARD_KEY, read_metadata
from segdist.model.card import ModelCard, card_text, read_card, resolve_model_path
from segdist.model.factory import build_model, without_pretrained
from segdist.model.trust import OWN, require_trust

if TYPE_CHECKING:
    from torch import nn

SHOWN_LINES, LONGEST_LINE = 3, 200


CHECKSUM_KEY = "segdist_sha256"
"""The entry of the metadata with the checksum of card and weights: safetensors has none of its own."""


def _checksum(card: str, content: bytes) -> str:
    """SHA-256 of a card and of the weights in a safetensors file: what comes after 8 bytes of length and its header."""
    weights = memoryview(content)[8 + int.from_bytes(content[:8], "little") :]
    digest = hashlib.sha256(card.encode())
    digest.update(weights)
    return digest.hexdigest()


def save_model(path: Path, state: dict[str, "torch.Tensor"], card: ModelCard) -> None:
    """Write weights and card to `path`, whole or not at all."""
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, value in state.items():
        tensor = value.detach().cpu().contiguous()
        # Weights that two layers share are stored twice: the format has no way to say that they are one.
        tensors[name] = tensor.clone() if tensor.untyped_storage().data_ptr() in seen else tensor
        seen.add(tensor.untyped_storage().data_ptr())
    text = card_text(card)
    content = save_safetensors(tensors)
    with whole_file(path) as file:
        file.write(_with_metadata(content, {CARD_KEY: text, CHECKSUM_KEY: _checksum(text, content)}))


def _with_metadata(content: bytes, metadata: dict[str, str]) -> bytes:
    """A safetensors file with metadata in the given order: safetensors itself writes them in a random one."""
    size = int.from_bytes(content[:8], "little")
    header = json.dumps({"__metadata__": metadata, **json.loads(content[8 : 8 + size])}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def load_model(path: Path | str, device: str = "cpu", trusted: Sequence[str] = ()) -> tuple["nn.Module", ModelCard]:
    """The model, in eval mode on `device`, and its card.

    Args:
        path: a model file, or a run folder (its best model).
        trusted: factories or modules of factories that may be imported; see `segdist.model.trust`.

    Raises:
        UserError: there is no such file, it is damaged, its weights don't fit the model that its card names, or that
            model is made by a factory that isn't trusted.
    """
    file = resolve_model_path(Path(path))
    weights, card = load_weights(file, device)
    folders = require_trust(card.model.factory, file, trusted)
    try:
        if card.model.factory in OWN:
            # Without memory, until the file's own tensors take the places: a card may claim any size.
            with torch.device("meta"):
                model = build_model(card.model, card.channels, len(card.classes))
            model.load_state_dict(weights, assign=True)
        else:
            model = _foreign_model(card, weights, folders)
    except (UserError, RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{file}: the weights don't fit {card.model.factory}: {_in_short(error)}") from None
    return model.to(device).eval(), card


def _in_short(error: Exception) -> str:
    """An error's first lines in one: torch lists every tensor that doesn't fit."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    shown = [line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}…" for line in lines[:SHOWN_LINES]]
    more = f"; and {len(lines) - SHOWN_LINES} more" if len(lines) > SHOWN_LINES else ""
    return "; ".join(shown) + more


def _foreign_model(card: ModelCard, weights: dict[str, "torch.Tensor"], folders: Sequence[str]) -> "nn.Module":
    """A model of the user's factory with the file's weights; nothing is fetched only to be replaced."""
    plain = without_pretrained(card.model, folders)
    model = build_model(plain, card.channels, len(card.classes), folders=folders)
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        if plain == card.model:
            raise
        # Some factories build another model without: torchvision's have an auxiliary head with pretrained weights only.
        model = build_model(card.model, card.channels, len(card.classes), folders=folders)
        model.load_state_dict(weights)
    return model


def load_weights(path: Path, device: str = "cpu") -> tuple[dict[str, "torch.Tensor"], ModelCard]:
    """The tensors of a model file and its card. Builds no model, so that nothing which the card names is run.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    card = read_card(path)
    metadata = read_metadata(path)
    expected = metadata.get(CHECKSUM_KEY)  # models of earlier versions have none
    if expected is not None and _checksum(metadata[CARD_KEY], path.read_bytes()) != expected:
        raise UserError(f"{path}: damaged (wrong checksum); copy it again, or take the other model of the run")
    try:
        return load_file(path, device=str(device)), card
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        raise UserError(f"{path}: its weights can't be read: {error}") from None
