"""Losses as sums with separate denominators, so that they can be normalized over ranks and accumulation steps.

Each part of the batch adds its sum; the denominator is the global number of counted pixels (cross entropy, focal) or
images (Dice). So one rank with 16 images has the same gradient as four ranks with 4 images each.
Shapes: B batch, K classes, H W pixels.
"""

import torch
from torch.nn import functional

from segdist.core.errors import UserError
from segdist.model.outputs import split_outputs
from segdist.training.config import LossConfig
from shards.manifest import IGNORE, median_frequency_weights

DICE_SMOOTHING = 100.0
"""Pixels added to numerator and denominator of Dice. What has fewer pixels in a patch counts less; otherwise the last
pixels of an object at the edge of a patch would count as much as a whole one."""


class Loss:
    """The loss of a run: one or two terms (over pixels, over images), each a sum with its own denominator.

    Args:
        config: which loss.
        class_weights: float32 (K,), on the device of the logits.
    """

    def __init__(self, config: LossConfig, class_weights: torch.Tensor) -> None:
        self.config = config
        self.class_weights = class_weights
        self.parts = tuple(config.name.split("+"))

    def counts(self, truth: torch.Tensor) -> torch.Tensor:
        """This batch's share of the denominators, from labels (B, H, W): int64 (parts,)."""
        pixels = (truth != IGNORE).sum()
        images = torch.full_like(pixels, len(truth))
        return torch.stack([images if part == "dice" else pixels for part in self.parts])

    def sums(self, outputs: object, truth: torch.Tensor) -> torch.Tensor:
        """The numerators, from the model's outputs and labels uint8 (B, H, W): float32 (parts,).

        Auxiliary outputs are upsampled to the labels' size and weighted by `config.auxiliary`.

        Raises:
            OutputError: the model's output isn't logits (B, K, H, W).
        """
        main, auxiliary = split_outputs(outputs, len(self.class_weights), (truth.shape[-2], truth.shape[-1]))
        total = self._sums(main, truth)
        for other in auxiliary:
            if other.shape[-2:] != truth.shape[-2:]:
                other = functional.interpolate(other, size=truth.shape[-2:], mode="bilinear", align_corners=False)
            total = total + self.config.auxiliary * self._sums(other, truth)
        return total

    def _sums(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        logits = logits.float()
        functions = {"cross_entropy": self._cross_entropy, "focal": self._focal, "dice": self._dice}
        return torch.stack([functions[part](logits, truth.long()) for part in self.parts])

    def _cross_entropy(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        # Summed here, because the GPU kernel's own reduction isn't deterministic.
        each = functional.cross_entropy(logits, truth, self.class_weights, ignore_index=IGNORE, reduction="none")
        return each.sum()

    def _focal(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """-w (1 - p)^gamma log p, where p is the probability of the true class (Lin et al. 2017)."""
        negative_log = functional.cross_entropy(logits, truth, ignore_index=IGNORE, reduction="none")
        weight = self.class_weights[torch.where(truth == IGNORE, 0, truth)]
        return (weight * (1 - torch.exp(-negative_log)) ** self.config.focal_gamma * negative_log).sum()

    def _dice(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """1 - (2 sum pt + s) / (sum p + sum t + s), averaged over the classes in each image (Milletari et al. 2016,
        without squares).

        A class that isn't in an image doesn't count there: its Dice would be near 0 until nearly no pixel of the image
        gets any of its probability, which costs the classes that are there. docs/training.md has the measurement.
        """
        num_classes = logits.shape[1]
        counted = (truth != IGNORE).unsqueeze(1)
        probabilities = logits.softmax(dim=1) * counted
        target = functional.one_hot(torch.where(truth == IGNORE, 0, truth), num_classes).permute(0, 3, 1, 2) * counted
        overlap = (probabilities * target).sum(dim=(2, 3))
        pixels = target.sum(dim=(2, 3))
        dice = (2 * overlap + DICE_SMOOTHING) / (probabilities.sum(dim=(2, 3)) + pixels + DICE_SMOOTHING)
        present = pixels > 0
        return ((1 - dice) * present).sum(dim=1).div(present.sum(dim=1).clamp(min=1)).sum()


def class_weights(config: LossConfig, pixels: tuple[int, ...]) -> torch.Tensor:
    """The weight of each class, float32 (K,).

    Args:
        config: "none": ones; "median_frequency": see `shards.manifest.median_frequency_weights`.
        pixels: pixels per class in the training split.

    Raises:
        UserError: the number of given weights differs from the number of classes.
    """
    if config.class_weights == "given":
        if len(config.weights) != len(pixels):
            raise UserError(f"--loss.weights has {len(config.weights)} numbers for {len(pixels)} classes")
        return torch.tensor(config.weights, dtype=torch.float32)
    if config.class_weights == "median_frequency":
        if not any(pixels):
            raise UserError("--loss.class-weights median_frequency: the training split has no labeled pixel")
        return torch.tensor(median_frequency_weights(pixels), dtype=torch.float32)
    return torch.ones(len(pixels))
