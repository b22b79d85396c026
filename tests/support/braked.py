"""A U-Net with a brake: a test holds a job where it wants it, on slow machines as on fast ones."""

import os
import time
from contextlib import suppress
from pathlib import Path

import torch

from segdist.model.unet import UNet

BRAKE = "SEGDIST_TEST_BRAKE"
"""Environment variable with the path of the brake."""


class Brake:
    """A file that says how many seconds each forward pass takes more; without the file, none.

    Seconds and no standstill: a job that is told to stop does so after a step.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def set(self, seconds: float) -> None:
        """Pull it."""
        draft = self.path.with_suffix(".draft")
        draft.write_text(str(seconds))
        draft.replace(self.path)

    def release(self) -> None:
        """Let the job go as fast as it can."""
        self.path.unlink()


class BrakedUNet(UNet):
    """The U-Net, with the same weights; each pass waits first if there is a brake."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """As `UNet`."""
        brake = os.environ.get(BRAKE)
        if brake:
            with suppress(FileNotFoundError):
                time.sleep(float(Path(brake).read_text()))
        return super().forward(images)
