"""The header of a model file, read without torch and without its weights."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from segdist.core.errors import UserError

CARD_KEY = "segdist"
"""The entry of the metadata that holds the model's card."""


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="np") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except FileNotFoundError:
        raise UserError(f"{path}: no such model file") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged, or not a safetensors file ({error})") from None
    return metadata
