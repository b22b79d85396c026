"""Settings of the model and its export, importable without torch."""

import json
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from segdist.core.errors import UserError
from segdist.core.json_values import JsonObject
from segdist.core.ranges import CountOrZero, Range

UNET = "segdist.model.unet:UNet"
UNET_BEFORE = "segdist.unet:UNet"
"""The U-Net's import path in files older than `segdist.model`."""

JsonTable = Annotated[
    JsonObject,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=lambda words: json.loads(words[0]),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [json.dumps(value)],
    ),
]


@dataclass(frozen=True)
class ModelConfig:
    """The model. The U-Net's settings only apply to the default factory."""

    factory: str = UNET
    """Import path `package.module:callable`, called with in_channels, the number of classes (as out_channels, classes,
    num_classes or n_classes, whichever it accepts) and kwargs. The model must return logits."""
    kwargs: JsonTable = field(default_factory=dict)
    """Additional keyword arguments for the factory: a TOML table, or JSON on the command line."""
    stride_multiple: CountOrZero = 0
    """Image sides must be multiples of this; 0: the model's `stride_multiple` attribute, else 32."""
    width: CountOrZero = 0
    """U-Net: channels at the first level, doubled at each next one; 0: 64 on a GPU (as in the paper), 16 on a CPU."""
    depth: Annotated[int, Range(1, 12)] = 4
    """U-Net: number of times the resolution is halved."""
    norm: Literal["batch", "group", "instance"] = "batch"
    """U-Net: normalization layer. Batch norm depends on each rank's batch; group norm doesn't."""
    upsampling: Literal["bilinear", "transposed"] = "bilinear"
    """U-Net: upsample by bilinear interpolation or by a transposed convolution."""

    def __post_init__(self) -> None:
        # In any file (model, run, TOML), the old name means the same model as the new one.
        if self.factory == UNET_BEFORE:
            object.__setattr__(self, "factory", UNET)


@dataclass(frozen=True)
class ExportConfig:
    """Write a trained model as ONNX and check it against torch."""

    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = ""
    """Run folder (its best model) or model file; a bare name is also searched for under runs/."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"])] = ""
    """The ONNX file; default: next to the model."""
    trust_factory: tuple[str, ...] = ()
    """Modules `package.module` whose model factories a model file may name; see docs/security.md."""
    raw: bool = False
    """Take stored values (0 to 255 or 65535) and return probabilities, instead of normalized values and logits."""
    fixed_size: bool = False
    """Fix height and width to the patch side, which is faster in some runtimes. The batch size stays variable."""
    opset: Annotated[int, Range(11, 25)] = 17
    """ONNX operator set version."""

    def validate(self) -> None:
        """Raises UserError if no model is named."""
        if not self.model:
            raise UserError("--model: name a run folder or a model file")
