"""The precision that the model computes in, and why."""

from dataclasses import dataclass
from typing import Literal

import torch

from segdist.core.errors import UserError

Choice = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Precision:
    """The resolved choice; `reason` is shown to the user."""

    name: Literal["fp32", "bf16", "fp16"]
    reason: str

    def autocast(self, device: torch.device) -> torch.autocast:
        """A context in which the model's forward pass runs in this precision."""
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.name]
        return torch.autocast(device.type, dtype=dtype, enabled=self.name != "fp32")

    @property
    def scaled(self) -> bool:
        """True if gradients need loss scaling, because of the small exponent range of fp16."""
        return self.name == "fp16"


def choose_precision(wanted: Choice, device: torch.device) -> Precision:
    """Resolve "auto": bf16 on Ampere and newer GPUs, fp16 on older ones with tensor cores, fp32 elsewhere.

    Raises:
        UserError: fp16 on a CPU, where most kernels don't support it.
    """
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16 needs a GPU; on a CPU use fp32 or bf16")
    if wanted != "auto":
        return Precision(wanted, "as requested")
    if device.type == "cpu":
        return Precision("fp32", "lower precision rarely helps on a CPU")
    capability = torch.cuda.get_device_capability(device)
    if capability >= (8, 0):
        return Precision("bf16", "the GPU has bf16 tensor cores")
    if capability >= (7, 0):
        return Precision("fp16", "the GPU has tensor cores for fp16 but not for bf16")
    return Precision("fp32", "the GPU has no tensor cores")
