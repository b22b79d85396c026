"""A U-Net with a brake, which lets a test slow a job down on any machine."""

import os
import time
from contextlib import suppress
from pathlib import Path

import torch

from segdist.model.unet import UNet

BRAKE = "SEGDIST_TEST_BRAKE"
"""Environment variable with the path of the brake file."""


class Brake:
    """A file with the extra seconds per forward pass; without the file, none.

    It delays rather than blocks, because a job told to stop does so after a step.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def set(self, seconds: float) -> None:
        """Slow the job down."""
        draft = self.path.with_suffix(".draft")
        draft.write_text(str(seconds))
        draft.replace(self.path)

    def release(self) -> None:
        """Let the job run at full speed."""
        self.path.unlink()


class BrakedUNet(UNet):
    """A U-Net with the same weights; each forward pass waits first if the brake is set."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """As `UNet`."""
        brake = os.environ.get(BRAKE)
        if brake:
            with suppress(FileNotFoundError):
                time.sleep(float(Path(brake).read_text()))
        return super().forward(images)
