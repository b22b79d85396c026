"""Losses as sums and counts: the gradient doesn't depend on how the batch is cut, and ignored pixels have no effect."""

import itertools

import pytest
import torch
from torch.nn import functional

from segdist.core.errors import UserError
from segdist.training.config import LossConfig
from segdist.training.losses import DICE_SMOOTHING, Loss, class_weights
from shards.manifest import IGNORE

NAMES = ("cross_entropy", "dice", "cross_entropy+dice", "focal")


def batch(count: int = 8, classes: int = 3, ignored: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(count, classes, 6, 5, generator=generator, dtype=torch.float64).float()
    truth = torch.randint(0, classes, (count, 6, 5), generator=generator, dtype=torch.uint8)
    if ignored:
        truth[torch.rand(truth.shape, generator=generator) < 0.3] = IGNORE
    return logits, truth


def value(loss: Loss, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return (loss.sums(logits, truth) / loss.counts(truth)).sum()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parts", [2, 3, 8])
def test_parts_of_a_batch_add_up_to_the_whole(name: str, parts: int) -> None:
    loss = Loss(LossConfig(name=name), torch.tensor([1.0, 2.0, 0.5]))
    logits, truth = batch()
    pieces = list(zip(logits.tensor_split(parts), truth.tensor_split(parts), strict=True))
    count = sum(loss.counts(t) for _, t in pieces)
    total = sum(loss.sums(x, t) for x, t in pieces)
    torch.testing.assert_close((total / count).sum(), value(loss, logits, truth))


@pytest.mark.parametrize("name", NAMES)
def test_ignored_pixels_have_no_gradient_and_no_effect(name: str) -> None:
    loss = Loss(LossConfig(name=name), torch.ones(3))
    logits, truth = batch()
    logits.requires_grad_()
    before = value(loss, logits, truth)
    before.backward()
    ignored = (truth == IGNORE).unsqueeze(1).expand_as(logits)
    assert logits.grad is not None
    assert logits.grad[ignored].abs().max() == 0
    assert logits.grad[~ignored].abs().max() > 0
    changed = torch.where(ignored, logits.detach() + 5, logits.detach())
    torch.testing.assert_close(value(loss, changed, truth), before.detach())


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_an_unlabeled_batch_is_finite(name: str) -> None:
    loss = Loss(LossConfig(name=name), torch.ones(3))
    logits, truth = batch()
    sums = loss.sums(logits, torch.full_like(truth, IGNORE))
    assert sums.isfinite().all()
    if "dice" not in name:
        assert loss.counts(torch.full_like(truth, IGNORE)).tolist() == [0]


def test_cross_entropy_matches_torch() -> None:
    loss = Loss(LossConfig(), torch.ones(3))
    logits, truth = batch()
    expected = functional.cross_entropy(logits, truth.long(), ignore_index=IGNORE)
    torch.testing.assert_close(value(loss, logits, truth), expected)


def test_focal_loss_with_gamma_0_is_weighted_cross_entropy() -> None:
    weights = torch.tensor([1.0, 3.0, 0.2])
    logits, truth = batch()
    focal = Loss(LossConfig(name="focal", focal_gamma=0.0), weights)
    plain = Loss(LossConfig(), weights)
    torch.testing.assert_close(focal.sums(logits, truth), plain.sums(logits, truth))


def test_focal_loss_matches_hand_computed_values() -> None:
    logits = torch.log(torch.tensor([0.7, 0.2, 0.1])).view(1, 3, 1, 1)
    truth = torch.tensor([[[1]]], dtype=torch.uint8)
    expected = -((1 - 0.2) ** 2) * torch.log(torch.tensor(0.2))
    loss = Loss(LossConfig(name="focal", focal_gamma=2.0), torch.ones(3))
    torch.testing.assert_close(loss.sums(logits, truth), expected.view(1))


def test_dice_loss_is_zero_for_a_perfect_prediction_and_large_for_a_wrong_one() -> None:
    truth = batch(ignored=False)[1].repeat_interleave(20, dim=1).repeat_interleave(20, dim=2)
    right = functional.one_hot(truth.long(), 3).permute(0, 3, 1, 2) * 100.0
    wrong = right.roll(1, dims=1)
    loss = Loss(LossConfig(name="dice"), torch.ones(3))
    assert value(loss, right, truth) < 1e-6
    assert value(loss, wrong, truth) > 0.8


def test_dice_averages_over_the_classes_in_each_image() -> None:
    logits = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(3))
    truth = torch.zeros(2, 6, 6, dtype=torch.uint8)
    truth[0, :3], truth[1, 2] = 2, 3
    probabilities = logits.softmax(dim=1)

    def one(image: int, label: int) -> torch.Tensor:
        mine, target = probabilities[image, label], (truth[image] == label).float()
        return 1 - (2 * (mine * target).sum() + DICE_SMOOTHING) / (mine.sum() + target.sum() + DICE_SMOOTHING)

    expected = (one(0, 0) + one(0, 2) + one(1, 0) + one(1, 3)) / 4
    torch.testing.assert_close(value(Loss(LossConfig(name="dice"), torch.ones(4)), logits, truth), expected)


def test_dice_counts_an_object_of_a_few_pixels_less_than_a_large_one() -> None:
    loss = Loss(LossConfig(name="dice"), torch.ones(2))

    def missed(pixels: int) -> float:
        truth = torch.zeros(1, 96, 96, dtype=torch.uint8)
        truth.view(-1)[:pixels] = 1
        background = torch.tensor([100.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 96, 96)
        return 2 * value(loss, background, truth).item()  # the other of two classes is right

    assert missed(0) == 0
    assert missed(5) < 0.06
    assert missed(1_000) > 0.9


def test_median_frequency_weights_match_their_definition() -> None:
    config = LossConfig(class_weights="median_frequency")
    assert class_weights(config, (800, 100, 100)).tolist() == pytest.approx([0.125, 1.0, 1.0])
    assert class_weights(config, (600, 0, 300)).tolist() == pytest.approx([0.75, 0.0, 1.5])
    with pytest.raises(UserError, match="no labeled pixel"):
        class_weights(config, (0, 0))


def test_given_weights_must_fit_the_classes() -> None:
    config = LossConfig(class_weights="given", weights=(1.0, 2.0))
    assert class_weights(config, (5, 5)).tolist() == [1.0, 2.0]
    with pytest.raises(UserError, match="2 numbers for 3 classes"):
        class_weights(config, (5, 5, 5))


def test_every_loss_prefers_the_truth() -> None:
    truth = batch(ignored=False)[1]
    right = functional.one_hot(truth.long(), 3).permute(0, 3, 1, 2).float()
    for name, strength in itertools.product(NAMES, (1.0, 3.0)):
        loss = Loss(LossConfig(name=name), torch.ones(3))
        assert value(loss, right * (strength + 1), truth) < value(loss, right * strength, truth)
