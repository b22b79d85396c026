"""Settings of `segdist export`."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from segdist.core.errors import UserError


@dataclass(frozen=True)
class ExportConfig:
    """Write a trained network as ONNX and check it against torch."""

    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = ""
    """Run folder (its best model) or model file; a bare name is looked for under runs/ as well."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"])] = ""
    """The ONNX file; default: beside the model."""
    raw: bool = False
    """Take stored values (0 to 255 or 65535) and return probabilities, instead of normalized values and logits."""
    fixed_size: bool = False
    """Fix height and width to the patch side; some runtimes are faster then. The batch stays free."""
    opset: int = 17
    """ONNX operator set."""

    def validate(self) -> None:
        """Raises UserError where no model is named."""
        if not self.model:
            raise UserError("--model: name a run folder or a model file")
