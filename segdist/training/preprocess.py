"""Turn stored batches into model input: moved to the device, normalized, flipped and augmented."""

import torch

from segdist.training.augmentation import Augmenter
from shards.read.batches import Batch

MicroBatch = tuple[torch.Tensor, torch.Tensor]
"""Images float32 (b, C, P, P), normalized, and labels uint8 (b, P, P), both on the device."""


class Preprocessor:
    """Moves batches to the device as bytes and converts them there.

    Args:
        mean, std: per channel, in stored units; the model sees (x - mean) / std.
        augmenter: flips and the other augmentations of training batches.
        accumulate: number of micro-batches per training batch; at most its number of samples.
        grain: samples per micro-batch, each prepared separately; 0: split by `accumulate`.
    """

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        augmenter: Augmenter,
        device: torch.device,
        accumulate: int = 1,
        grain: int = 0,
        channels_last: bool = False,
    ) -> None:
        self.mean = torch.tensor(mean, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        # A constant channel has no spread to divide by.
        self.scale = 1 / torch.tensor(std, dtype=torch.float32, device=device).clamp(min=1e-6).view(1, -1, 1, 1)
        self.augmenter = augmenter
        self.device = device
        self.accumulate, self.grain = accumulate, grain
        self.format = torch.channels_last if channels_last else torch.contiguous_format

    def plain(self, batch: Batch) -> MicroBatch:
        """The batch without flips or augmentation, for validation."""
        images, truth = batch.to(self.device)
        return self._normalized(images).contiguous(memory_format=self.format), truth

    def training(self, batch: Batch) -> list[MicroBatch]:
        """The batch normalized, flipped and augmented, as the micro-batches of one optimizer step."""
        images, truth = batch.to(self.device)
        flips = batch.flips.to(self.device, non_blocking=True)
        if self.grain:
            parts = [slice(start, start + self.grain) for start in range(0, len(truth), self.grain)]
            return [self._prepared(batch, images[part], truth[part], flips[part], batch.slots[part]) for part in parts]
        images, truth = self._prepared(batch, images, truth, flips, batch.slots)
        return list(zip(images.tensor_split(self.accumulate), truth.tensor_split(self.accumulate), strict=True))

    def _prepared(
        self, batch: Batch, images: torch.Tensor, truth: torch.Tensor, flips: torch.Tensor, slots: range
    ) -> MicroBatch:
        images, truth = self.augmenter(self._normalized(images), truth, flips, batch.epoch, batch.step, slots)
        return images.contiguous(memory_format=self.format), truth

    def _normalized(self, images: torch.Tensor) -> torch.Tensor:
        return (images.float() - self.mean) * self.scale
