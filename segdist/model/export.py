"""Export to ONNX, checked against torch. Needs the extra `onnx`.

The graph maps normalized tiles, float32 (B, C, H, W), to logits (B, K, H, W). With `raw`, it maps stored values to
class probabilities, so other programs don't need the channel statistics. The file's metadata holds the model card.
"""

import importlib
import io
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import nn

from segdist.core.errors import UserError
from segdist.core.files import whole_file
from segdist.core.model_header import CARD_KEY
from segdist.core.paths import run_dir
from segdist.model.card import ModelCard, card_text, resolve_model_path
from segdist.model.config import UNET, ExportConfig
from segdist.model.model_file import load_model
from segdist.model.outputs import MainOutput

TOLERANCE = 1e-3
"""Largest accepted difference from torch, relative to the largest output."""


class Raw(nn.Module):
    """Stored values in, class probabilities out."""

    def __init__(self, model: nn.Module, card: ModelCard) -> None:
        super().__init__()
        self.model = model
        self.mean = torch.tensor(card.mean).view(1, -1, 1, 1)
        self.temperature = card.temperature
        self.scale = 1 / torch.tensor(card.std).clamp(min=1e-6).view(1, -1, 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class probabilities (B, K, H, W) of stored values, given as float32 (B, C, H, W)."""
        return torch.softmax(self.model((images - self.mean) * self.scale) / self.temperature, dim=1)


def export(config: ExportConfig) -> tuple[Path, float]:
    """Write the ONNX file and compare it with torch on random tiles of several sizes and batch sizes.

    Returns:
        The file, and the largest difference relative to the largest output.

    Raises:
        UserError: the extra is missing, the model can't be exported, or the results differ; then nothing is written.
    """
    onnx, runtime = _packages()
    file = resolve_model_path(run_dir(config.model))
    model, card = load_model(file, trusted=config.trust_factory)
    if card.model.factory != UNET:
        model = MainOutput(model, len(card.classes)).eval()
    if config.raw:
        model = Raw(model, card).eval()
    path = Path(config.out) if config.out else file.with_suffix(".onnx")
    side = card.patch + -card.patch % card.stride_multiple
    sizes = {0: "batch"} if config.fixed_size else {0: "batch", 2: "height", 3: "width"}
    graph = onnx.load_from_string(_graph(model, torch.zeros(1, card.channels, side, side), sizes, config))
    metadata = graph.metadata_props.add()
    metadata.key, metadata.value = CARD_KEY, card_text(card)
    onnx.checker.check_model(graph)
    content = graph.SerializeToString()
    difference = _compare(model, content, card, side, runtime, fixed=config.fixed_size)
    if not difference <= TOLERANCE:
        raise UserError(f"{file}: onnxruntime's result differs from torch's by {difference:.2g}; nothing was written")
    with whole_file(path) as target:
        target.write(content)
    return path, difference


def _packages() -> tuple[ModuleType, ModuleType]:
    try:
        return importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    except ImportError as error:
        raise UserError(f"export needs the package {error.name}: pip install 'segdist[onnx]'") from None


def _graph(model: nn.Module, example: torch.Tensor, sizes: dict[int, str], config: ExportConfig) -> bytes:
    """The model as the bytes of an ONNX file."""
    buffer = io.BytesIO()
    output = "probabilities" if config.raw else "logits"
    with warnings.catch_warnings():
        # Tracing warns that it records one path through the code; `_compare` checks other sizes.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                model,
                (example,),
                buffer,  # type: ignore[arg-type]
                input_names=["images"],
                output_names=[output],
                dynamic_axes={"images": sizes, output: sizes},
                opset_version=config.opset,
                # The tracing exporter needs no extra package and keeps height and width dynamic. The newer one
                # rejects models that check their input size.
                dynamo=False,
            )
        except Exception as error:  # torch raises a dozen types here; to the user they all mean the same
            raise UserError(f"this model can't be exported: {error}") from error
    return buffer.getvalue()


def _compare(
    model: nn.Module, content: bytes, card: ModelCard, side: int, runtime: ModuleType, *, fixed: bool
) -> float:
    """Largest difference between torch and onnxruntime, relative to the largest output."""
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    worst = 0.0
    for batch, height, width in ((1, side, side), (3, side, side), (2, side + card.stride_multiple, 2 * side)):
        if fixed and (height, width) != (side, side):
            continue
        tiles = generator.normal(0, 1, (batch, card.channels, height, width)).astype(np.float32)
        with torch.inference_mode():
            expected = model(torch.from_numpy(tiles)).numpy()
        found = session.run(None, {"images": tiles})[0]
        worst = max(worst, float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12)))
    return worst
