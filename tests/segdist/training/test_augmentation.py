"""Augmentations: their effects, and that they depend only on (seed, epoch, step, slot)."""

import dataclasses
from itertools import pairwise
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from segdist.core.errors import UserError
from segdist.training.augmentation import RANGE, Augmenter, flip, turn
from segdist.training.config import AugmentConfig
from segdist.training.preprocess import Preprocessor
from shards.read.batches import Batch

ALL = AugmentConfig(
    rotate90=True, rotate=20, scale=0.2, elastic=2, brightness=0.1, contrast=0.2, gamma=0.3, noise=0.05, blur=1.0
)
SINGLE = [
    AugmentConfig(**{field.name: getattr(ALL, field.name)})
    for field in dataclasses.fields(ALL)
    if field.name != "upside_down"  # draws nothing
]  # fmt: skip


def name_of(config: AugmentConfig) -> str:
    return next(field.name for field in dataclasses.fields(config) if getattr(config, field.name) != field.default)


def batch(count: int = 12, channels: int = 2, size: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.uniform(-3, 3, (count, channels, size, size)).astype(np.float32))
    masks = torch.from_numpy(random.integers(0, 3, (count, size, size)).astype(np.uint8))
    return images, masks, torch.from_numpy(random.integers(0, 4, count).astype(np.uint8))


@pytest.mark.parametrize("bits", range(4))
def test_flips_mirror_image_and_mask_alike(bits: int) -> None:
    images, masks, _ = batch()
    axes = [-1] * (bits & 1) + [-2] * (bits >> 1)
    flips = torch.full((12,), bits, dtype=torch.uint8)
    out, truth = Augmenter(AugmentConfig(), 0)(images, masks, flips, 0, 0, range(12))
    assert torch.equal(out, images.flip(axes) if axes else images)
    assert torch.equal(truth, masks.flip(axes) if axes else masks)


@pytest.mark.parametrize("bits", range(4))
def test_upright_images_are_only_mirrored_left_to_right(bits: int) -> None:
    images, masks, _ = batch()
    flips = torch.full((12,), bits, dtype=torch.uint8)
    out, truth = Augmenter(AugmentConfig(upside_down=False), 0)(images, masks, flips, 0, 0, range(12))
    assert torch.equal(out, images.flip(-1) if bits & 1 else images)
    assert torch.equal(truth, masks.flip(-1) if bits & 1 else masks)


def test_flips_are_chosen_per_sample() -> None:
    images, _, flips = batch()
    out = flip(images, flips)
    for place in range(12):
        assert torch.equal(out[place], flip(images[place : place + 1], flips[place : place + 1])[0])


def test_rotations_are_by_right_angles_counterclockwise() -> None:
    images, masks, _ = batch(4)
    turns = torch.arange(4)
    for place in range(4):
        assert torch.equal(turn(images, turns)[place], images[place].rot90(place, (-2, -1)))
        assert torch.equal(turn(masks, turns)[place], masks[place].rot90(place, (-2, -1)))


@pytest.mark.parametrize("config", [ALL, *SINGLE], ids=["all", *map(name_of, SINGLE)])
@pytest.mark.parametrize("cuts", [(0, 12), (0, 5, 12), (0, 1, 4, 9, 12)])
def test_a_sample_is_augmented_the_same_in_any_split_of_the_batch(config: AugmentConfig, cuts: tuple[int, ...]) -> None:
    images, masks, flips = batch()
    augment = Augmenter(config, 5)
    whole = augment(images, masks, flips, 3, 7, range(12))
    parts = [
        augment(images[start:end], masks[start:end], flips[start:end], 3, 7, range(start, end))
        for start, end in pairwise(cuts)
    ]
    assert torch.equal(torch.cat([part[0] for part in parts]), whole[0])
    assert torch.equal(torch.cat([part[1] for part in parts]), whole[1])


@pytest.mark.parametrize("config", SINGLE, ids=name_of)
def test_seed_epoch_step_and_slot_all_matter(config: AugmentConfig) -> None:
    images, masks, _ = batch()
    images, masks = images[:1].expand(12, -1, -1, -1).contiguous(), masks[:1].expand(12, -1, -1).contiguous()
    still = torch.zeros(12, dtype=torch.uint8)

    def result(seed: int, epoch: int, step: int, slots: range) -> torch.Tensor:
        return Augmenter(config, seed)(images, masks, still, epoch, step, slots)[0]

    first = result(0, 0, 0, range(12))
    for other in (result(1, 0, 0, range(12)), result(0, 1, 0, range(12)), result(0, 0, 1, range(12))):
        assert not torch.equal(first, other)
    assert not torch.equal(first, result(0, 0, 0, range(12, 24)))
    assert len({each.numpy().tobytes() for each in first}) >= 3


@pytest.mark.parametrize("config", [ALL, *SINGLE], ids=["all", *map(name_of, SINGLE)])
def test_shapes_and_types_are_preserved(config: AugmentConfig) -> None:
    images, masks, flips = batch(5, 3, 48)
    out, truth = Augmenter(config, 0)(images, masks, flips, 0, 0, range(5))
    assert out.shape == images.shape
    assert out.dtype == torch.float32
    assert truth.shape == masks.shape
    assert truth.dtype == torch.uint8
    assert set(truth.unique().tolist()) <= {0, 1, 2}
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", ["brightness", "contrast", "gamma", "noise", "blur"])
def test_intensity_changes_leave_masks_alone(name: str) -> None:
    images, masks, _ = batch()
    config = AugmentConfig(**{name: getattr(ALL, name)})
    _, truth = Augmenter(config, 0)(images, masks, torch.zeros(12, dtype=torch.uint8), 0, 0, range(12))
    assert torch.equal(truth, masks)


@pytest.mark.parametrize("name", ["rotate90", "rotate", "scale", "elastic"])
def test_geometric_changes_apply_to_image_and_mask_alike(name: str) -> None:
    mask = torch.zeros(8, 48, 48, dtype=torch.uint8)
    mask[:, 10:30, 8:24] = 1
    images = mask[:, None].float() * 200
    config = AugmentConfig(**{name: getattr(ALL, name)})
    out, truth = Augmenter(config, 0)(images, mask, torch.zeros(8, dtype=torch.uint8), 0, 0, range(8))
    assert not torch.equal(truth, mask)
    # Bilinear and nearest differ only on the border of the shape.
    assert ((out[:, 0] > 100) == (truth == 1)).float().mean() > 0.98


def test_an_enlarged_shape_grows_by_the_requested_factor() -> None:
    mask = torch.zeros(64, 64, 64, dtype=torch.uint8)
    mask[:, 24:40, 24:40] = 1
    still = torch.zeros(64, dtype=torch.uint8)
    _, truth = Augmenter(AugmentConfig(scale=0.5), 0)(mask[:, None].float(), mask, still, 0, 0, range(64))
    areas = truth.sum(dim=(1, 2)) / 256
    assert 1 / 1.5**2 - 0.1 <= areas.min() < 0.6
    assert 1.7 < areas.max() <= 1.5**2 + 0.1


def test_no_pixels_are_left_empty_at_the_border() -> None:
    images = torch.full((8, 1, 48, 48), 100.0)
    masks = torch.ones(8, 48, 48, dtype=torch.uint8)
    config = AugmentConfig(rotate=45, scale=0.5, elastic=5)
    out, truth = Augmenter(config, 0)(images, masks, torch.zeros(8, dtype=torch.uint8), 0, 0, range(8))
    assert torch.allclose(out, images, atol=1e-3)
    assert (truth == 1).all()


def test_noise_is_normal_with_the_requested_deviation() -> None:
    images = torch.zeros(400, 1, 32, 32)
    config = AugmentConfig(noise=0.1)
    masks, still = torch.zeros(400, 32, 32, dtype=torch.uint8), torch.zeros(400, dtype=torch.uint8)
    noise, _ = Augmenter(config, 0)(images, masks, still, 0, 0, range(400))
    deviations = noise.std(dim=(1, 2, 3)) / RANGE
    assert 0 <= deviations.min() < 0.005
    assert 0.095 < deviations.max() < 0.105
    scaled = (noise / noise.std(dim=(1, 2, 3), keepdim=True)).flatten()
    assert abs(float(scaled.mean())) < 0.01
    assert 0.67 < float((scaled.abs() < 1).float().mean()) < 0.70


@pytest.mark.parametrize("settings", [{"brightness": 0.05}, {"gamma": 0.2}, {"noise": 0.05}], ids=str)
def test_images_that_use_few_of_16_bits_change_no_more_than_others(settings: dict[str, float]) -> None:
    random = np.random.default_rng(0)
    masks, flips = torch.zeros(50, 16, 16, dtype=torch.uint8), torch.zeros(50, dtype=torch.uint8)
    values = random.normal(0, 1, (50, 1, 16, 16))

    def changed(mean: float, std: float, dtype: type[np.generic]) -> torch.Tensor:
        stored = torch.from_numpy(np.rint(mean + std * values).astype(dtype))
        here = SimpleNamespace(to=lambda device: (stored, masks), flips=flips, epoch=0, step=0, slots=range(50))
        batch = cast(Batch, here)
        augmenter = Augmenter(AugmentConfig(**settings), 0)  # type: ignore[arg-type]
        preprocess = Preprocessor((mean,), (std,), augmenter, torch.device("cpu"))
        [(images, _)] = preprocess.training(batch)
        return images - preprocess.plain(batch)[0]

    few = changed(33_100, 150, np.uint16)
    usual = changed(120, 40, np.uint8)
    assert 0.1 < usual.abs().amax(dim=(1, 2, 3)).median() < 1
    assert (few - usual).abs().mean() < 0.01


def test_gamma_keeps_the_order_of_values_above_the_range() -> None:
    images = torch.linspace(-3, 20, 256).view(1, 1, 16, 16).expand(20, -1, -1, -1)
    masks, still = torch.zeros(20, 16, 16, dtype=torch.uint8), torch.zeros(20, dtype=torch.uint8)
    out, _ = Augmenter(AugmentConfig(gamma=0.3), 0)(images, masks, still, 0, 0, range(20))
    assert (out.flatten(1).diff(dim=1) > 0).all()


@pytest.mark.parametrize("settings", [{"rotate": -1}, {"brightness": 2}, {"blur": 50}])
def test_strengths_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match="--augment"):
        Augmenter(AugmentConfig(**settings), 0)  # type: ignore[arg-type]


@pytest.mark.gpu
def test_a_gpu_agrees_with_the_cpu() -> None:
    images, masks, flips = batch()
    augment = Augmenter(ALL, 0)
    here, truth = augment(images, masks, flips, 1, 2, range(12))
    there, truth_there = augment(images.cuda(), masks.cuda(), flips, 1, 2, range(12))
    assert torch.allclose(here, there.cpu(), atol=0.01)
    assert (truth == truth_there.cpu()).float().mean() > 0.999
