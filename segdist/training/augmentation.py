"""Augmentation of whole batches, on their own device. B C H W: batch, channels, height, width.

A sample's augmentation depends only on (seed, epoch, step, slot): every draw is a hash of these, never the next number
of a generator. So it is the same however the global batch is split over ranks. Nothing waits for the device: the few
numbers per sample are drawn on the host and moved without blocking.

Images are normalized: (x - mean) / std of the training patches, per channel. That gives brightness, gamma and noise a
unit that fits any image: the range of values from 3 standard deviations below the mean to 3 above it (`RANGE`). Of the
65,536 possible values of 16 bits, images often use a few hundred.

All geometric changes share one resampling: bilinear for images, nearest for masks. Outside the patch, image and mask
are reflected, so the loss covers all pixels.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from segdist.core.keyed import Purpose, hash64, uniform
from segdist.core.ranges import check_ranges
from segdist.training.config import AugmentConfig

RANGE = 6.0
"""Range of the values of normalized images, -3 to 3."""
CONTROL_DISTANCE = 24
"""Pixels between the control points of the elastic deformation."""


class Augmenter:
    """Applies the flips, and the augmentations enabled in an `AugmentConfig`, to batches."""

    def __init__(self, config: AugmentConfig, seed: int) -> None:
        check_ranges(config, section="augment")
        self.config, self.seed = config, seed
        self._geometry = bool(config.rotate or config.scale or config.elastic)
        self._intensity = bool(config.brightness or config.contrast or config.gamma or config.noise or config.blur)

    def __call__(
        self, images: torch.Tensor, masks: torch.Tensor, flips: torch.Tensor, epoch: int, step: int, slots: range
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Augmented copies of `images` (B, C, H, W), float32, normalized, and `masks` (B, H, W), uint8.

        `flips` (B,): bit 0 mirrors left and right, bit 1 up and down. `slots`: the samples' slots in the global batch.
        """
        flips = flips.to(images.device, non_blocking=True)
        if not self.config.upside_down:
            flips = flips & 1
        images, masks = flip(images, flips), flip(masks, flips)
        draw = _Draws(self.seed, epoch, step, np.asarray(slots), images.device)
        if self.config.rotate90:
            turns = draw.integers(Purpose.ROTATE90, 4)
            images, masks = turn(images, turns), turn(masks, turns)
        if self._geometry:
            grid = self._grid(draw, *masks.shape[1:])
            images, masks = resample(images, masks, grid)
        if self._intensity:
            images = self._intensities(images, draw)
        return images, masks

    def _grid(self, draw: "_Draws", height: int, width: int) -> torch.Tensor:
        """Source position of each output pixel: (B, H, W, 2), x and y in input pixels."""
        config = self.config
        angle = draw.between(Purpose.ROTATE, -config.rotate, config.rotate) * (torch.pi / 180)
        zoom = draw.factor(Purpose.SCALE, config.scale)
        device = angle.device
        y = torch.arange(height, device=device, dtype=torch.float32).view(1, -1, 1) - (height - 1) / 2
        x = torch.arange(width, device=device, dtype=torch.float32).view(1, 1, -1) - (width - 1) / 2
        cos, sin = (torch.cos(angle) / zoom).view(-1, 1, 1), (torch.sin(angle) / zoom).view(-1, 1, 1)
        grid = torch.stack([cos * x - sin * y + (width - 1) / 2, sin * x + cos * y + (height - 1) / 2], dim=-1)
        if config.elastic:
            points = (-(-height // CONTROL_DISTANCE) + 1, -(-width // CONTROL_DISTANCE) + 1)
            shifts = draw.normal_points(Purpose.ELASTIC, (2, *points)) * config.elastic
            smooth = F.interpolate(shifts, (height, width), mode="bicubic", align_corners=True)
            grid = grid + smooth.permute(0, 2, 3, 1)
        return grid

    def _intensities(self, images: torch.Tensor, draw: "_Draws") -> torch.Tensor:
        config = self.config
        if config.blur:
            images = blur(images, draw.between(Purpose.BLUR, 0, config.blur), config.blur)
        if config.contrast:
            mean = images.mean(dim=(1, 2, 3), keepdim=True)
            images = mean + (images - mean) * _per_sample(draw.factor(Purpose.CONTRAST, config.contrast))
        if config.brightness:
            images = (
                images + _per_sample(draw.between(Purpose.BRIGHTNESS, -config.brightness, config.brightness)) * RANGE
            )
        if config.gamma:
            power = _per_sample(draw.factor(Purpose.GAMMA, config.gamma))
            # Negative numbers have no such power; values above the range have, so bright details are kept.
            images = ((images / RANGE + 0.5).clamp(min=0) ** power - 0.5) * RANGE
        if config.noise:
            deviation = _per_sample(draw.between(Purpose.NOISE, 0, config.noise)) * RANGE
            images = images + deviation * draw.normal_pixels(Purpose.PIXELS, images.shape[1:])
        return images


def flip(batch: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
    """Mirror each sample of (B, …, H, W) according to its bits: bit 0 left and right, bit 1 up and down."""
    for bit, axis in ((1, -1), (2, -2)):
        # Computing both costs a copy; indexing would wait for the device to count the selected samples.
        batch = torch.where(_like(batch, flips & bit).bool(), batch.flip(axis), batch)
    return batch


def turn(batch: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Rotate each square sample of (B, …, H, W) counterclockwise by `turns` (B,) times 90 degrees."""
    batch = torch.where(_like(batch, turns & 1).bool(), batch.rot90(1, (-2, -1)), batch)
    return torch.where(_like(batch, turns & 2).bool(), batch.flip((-2, -1)), batch)


def resample(images: torch.Tensor, masks: torch.Tensor, grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample images (B, C, H, W) and masks (B, H, W) at `grid` (B, H, W, 2), x and y in pixels; reflected outside."""
    height, width = masks.shape[1:]
    # Plain numbers, because copying a tensor of them to the device would block.
    unit = torch.stack([(grid[..., 0] + 0.5) * (2 / width) - 1, (grid[..., 1] + 0.5) * (2 / height) - 1], dim=-1)
    images = F.grid_sample(images, unit, mode="bilinear", padding_mode="reflection", align_corners=False)
    labels = F.grid_sample(masks[:, None].float(), unit, mode="nearest", padding_mode="reflection", align_corners=False)
    return images, labels[:, 0].to(torch.uint8)


def blur(images: torch.Tensor, deviation: torch.Tensor, largest: float) -> torch.Tensor:
    """Blur each sample of (B, C, H, W) with a Gaussian of its own standard deviation (B,), at most `largest` pixels."""
    radius = max(1, int(3 * largest + 0.5))
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float32)
    weights = torch.exp(-0.5 * (offsets / deviation.clamp(min=1e-3).view(-1, 1)) ** 2)
    weights = weights / weights.sum(dim=1, keepdim=True)
    for axis, padding in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        size = images.shape[axis]
        padded = F.pad(images, padding, mode="replicate")
        # A sum of shifted copies, not a grouped convolution: its bits don't depend on the other samples.
        total = torch.zeros_like(images)
        for number in range(2 * radius + 1):
            total += padded.narrow(axis, number, size) * weights[:, number].view(-1, 1, 1, 1)
        images = total
    return images


class _Draws:
    """The random numbers of one step's samples."""

    def __init__(self, seed: int, epoch: int, step: int, slots: NDArray[np.int64], device: torch.device) -> None:
        self._seed, self._at = seed, (epoch, step)
        self._slots, self._device = slots, device

    def between(self, purpose: int, low: float, high: float) -> torch.Tensor:
        """Uniform from `low` to `high`, (B,)."""
        return self._move(low + (high - low) * uniform(self._seed, purpose, *self._at, self._slots))

    def factor(self, purpose: int, strength: float) -> torch.Tensor:
        """Log-uniform from 1/(1 + strength) to 1 + strength, (B,)."""
        return self._move((1 + strength) ** (2 * uniform(self._seed, purpose, *self._at, self._slots) - 1))

    def integers(self, purpose: int, count: int) -> torch.Tensor:
        """Uniform from 0 to count - 1, (B,)."""
        return self._move(uniform(self._seed, purpose, *self._at, self._slots) * count).long()

    def normal_points(self, purpose: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Standard normal numbers (B, *shape), drawn on the host; for small shapes."""
        slots = self._slots.reshape(-1, *[1] * len(shape))
        places = np.arange(np.prod(shape)).reshape(1, *shape)
        radius = np.sqrt(-2 * np.log1p(-uniform(self._seed, purpose, *self._at, slots, places, 0)))
        return self._move(radius * np.cos(2 * np.pi * uniform(self._seed, purpose, *self._at, slots, places, 1)))

    def normal_pixels(self, purpose: int, shape: torch.Size) -> torch.Tensor:
        """Standard normal numbers (B, *shape), hashed from their positions on the device; for large shapes."""
        keys = torch.from_numpy(hash64(self._seed, purpose, *self._at, self._slots).view(np.int64)).to(
            self._device, non_blocking=True
        )
        places = torch.arange(shape.numel(), device=self._device).view(1, *shape)
        bits = _hash(places + keys.view(-1, *[1] * len(shape)))
        # Box-Muller transform from 2 x 32 bits; adding 0.5 keeps the logarithm's argument above 0.
        first = ((bits >> 32) & 0xFFFFFFFF).double() + 0.5
        second = (bits & 0xFFFFFFFF).double()
        normal = torch.sqrt(-2 * torch.log(first * 2.0**-32)) * torch.cos(second * (2 * torch.pi * 2.0**-32))
        return normal.float()

    def _move(self, values: NDArray[np.float64]) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self._device, non_blocking=True)


def _hash(values: torch.Tensor) -> torch.Tensor:
    """The splitmix64 finalizer on int64: products wrap around; right shifts extend the sign, which is masked off."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        values = (values ^ ((values >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return values ^ ((values >> 31) & ((1 << 33) - 1))


def _like(batch: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """`values` (B,), reshaped to broadcast over `batch` (B, …)."""
    return values.view(-1, *[1] * (batch.ndim - 1))


def _per_sample(values: torch.Tensor) -> torch.Tensor:
    return values.view(-1, 1, 1, 1)
