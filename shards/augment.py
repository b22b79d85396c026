"""Augmentation of whole batches, on the device they are on. B C H W: batch, channels, height, width.

What happens to a sample depends on (seed, epoch, step, slot) alone: every draw is a hash of these, never the next
number of a generator, so a sample comes out the same in any split of the global batch over ranks.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class AugmentConfig:
    """Strengths of the augmentations; everything but the flips, which belong to the order of samples, is off."""


class Augmenter:
    """Applies the flips, and what `AugmentConfig` turns on, to batches."""

    def __init__(self, config: AugmentConfig, seed: int) -> None:
        self.config, self.seed = config, seed

    def __call__(
        self, images: torch.Tensor, masks: torch.Tensor, flips: torch.Tensor, epoch: int, step: int, slots: range
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Augmented copies of `images` (B, C, H, W) float32 and `masks` (B, H, W) uint8.

        `flips` (B,): bit 0 mirrors left and right, bit 1 up and down. `slots`: the samples' slots in the global batch.
        """
        flips = flips.to(images.device, non_blocking=True)
        return flip(images, flips), flip(masks, flips)


def flip(batch: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
    """Mirror each sample of (B, …, H, W) as its bits say: bit 0 left and right, bit 1 up and down."""
    for bit, axis in ((1, -1), (2, -2)):
        # Selecting between both costs a copy, but no wait for the device to count the chosen ones.
        chosen = (flips & bit).bool().view(-1, *[1] * (batch.ndim - 1))
        batch = torch.where(chosen, batch.flip(axis), batch)
    return batch
