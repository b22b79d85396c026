"""A tiny model file whose card a test changes."""

import json
from pathlib import Path

from safetensors.torch import save_file

from segdist.core.model_header import CARD_KEY
from segdist.model.card import ModelCard, card_text
from segdist.model.config import ModelConfig
from segdist.model.unet import UNet
from shards.manifest import ClassInfo

CARD = ModelCard(
    model=ModelConfig(width=4, depth=2),
    classes=(ClassInfo("paper", (0, 0, 0)), ClassInfo("ink", (255, 0, 0))),
    channels=1,
    dtype="uint8",
    patch=32,
    mean=(100.0,),
    std=(20.0,),
    stride_multiple=4,
    score=0.5,
)


def write_model_file(path: Path, **changes: object) -> Path:
    """Write a model file with changes to its card; None removes a key."""
    values = json.loads(card_text(CARD)) | changes
    values = {key: value for key, value in values.items() if value is not None}
    save_file(UNet(1, 2, width=4, depth=2).state_dict(), path, metadata={CARD_KEY: json.dumps(values)})
    return path
