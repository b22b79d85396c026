"""Model files: safetensors weights together with the card that describes them."""

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
"""Metadata key of the checksum of card and weights; safetensors itself has none."""


def _checksum(card: str, content: bytes) -> str:
    """SHA-256 of a card and the weights of a safetensors file, which follow its 8 bytes of length and its header."""
    weights = memoryview(content)[8 + int.from_bytes(content[:8], "little") :]
    digest = hashlib.sha256(card.encode())
    digest.update(weights)
    return digest.hexdigest()


def save_model(path: Path, state: dict[str, "torch.Tensor"], card: ModelCard) -> None:
    """Write weights and card to `path` atomically."""
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, value in state.items():
        tensor = value.detach().cpu().contiguous()
        # Weights shared by two layers are stored twice, because the format can't express sharing.
        tensors[name] = tensor.clone() if tensor.untyped_storage().data_ptr() in seen else tensor
        seen.add(tensor.untyped_storage().data_ptr())
    text = card_text(card)
    content = save_safetensors(tensors)
    with whole_file(path) as file:
        file.write(_with_metadata(content, {CARD_KEY: text, CHECKSUM_KEY: _checksum(text, content)}))


def _with_metadata(content: bytes, metadata: dict[str, str]) -> bytes:
    """A safetensors file with metadata in the given order; safetensors itself writes it in random order."""
    size = int.from_bytes(content[:8], "little")
    header = json.dumps({"__metadata__": metadata, **json.loads(content[8 : 8 + size])}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def load_model(path: Path | str, device: str = "cpu", trusted: Sequence[str] = ()) -> tuple["nn.Module", ModelCard]:
    """Load a model, in eval mode on `device`, and its card.

    Args:
        path: a model file, or a run folder (its best model).
        trusted: factories or modules of factories that may be imported; see `segdist.model.trust`.

    Raises:
        UserError: the file is missing or damaged, its weights don't fit the model that its card names, or that
            model's factory isn't trusted.
    """
    file = resolve_model_path(Path(path))
    weights, card = load_weights(file, device)
    folders = require_trust(card.model.factory, file, trusted)
    try:
        if card.model.factory in OWN:
            # Allocates nothing, because a card may claim any size; the file's tensors are assigned afterwards.
            with torch.device("meta"):
                model = build_model(card.model, card.channels, len(card.classes))
            model.load_state_dict(weights, assign=True)
        else:
            model = _foreign_model(card, weights, folders)
    except (UserError, RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{file}: the weights don't fit {card.model.factory}: {_in_short(error)}") from None
    return model.to(device).eval(), card


def _in_short(error: Exception) -> str:
    """The first lines of an error, joined: torch lists every tensor that doesn't fit."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    shown = [line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}…" for line in lines[:SHOWN_LINES]]
    more = f"; and {len(lines) - SHOWN_LINES} more" if len(lines) > SHOWN_LINES else ""
    return "; ".join(shown) + more


def _foreign_model(card: ModelCard, weights: dict[str, "torch.Tensor"], folders: Sequence[str]) -> "nn.Module":
    """A model from the user's factory with the file's weights, without loading pretrained ones first."""
    plain = without_pretrained(card.model, folders)
    model = build_model(plain, card.channels, len(card.classes), folders=folders)
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        if plain == card.model:
            raise
        # Some factories build a different model then: torchvision's lose their auxiliary head.
        model = build_model(card.model, card.channels, len(card.classes), folders=folders)
        model.load_state_dict(weights)
    return model


def load_weights(path: Path, device: str = "cpu") -> tuple[dict[str, "torch.Tensor"], ModelCard]:
    """The tensors of a model file and its card. Doesn't build the model, so no code that the card names runs.

    Raises:
        UserError: the file is missing or damaged.
    """
    card = read_card(path)
    metadata = read_metadata(path)
    expected = metadata.get(CHECKSUM_KEY)  # models from earlier versions have none
    if expected is not None and _checksum(metadata[CARD_KEY], path.read_bytes()) != expected:
        raise UserError(f"{path}: damaged (wrong checksum); copy it again, or use the other model of the run")
    try:
        return load_file(path, device=str(device)), card
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        raise UserError(f"{path}: its weights can't be read: {error}") from None
