"""One optimizer step: global normalization, accumulation, skipped bad gradients, averaged weights."""

from typing import Any, Literal

import pytest
import torch

from segdist.model.precision import Precision
from segdist.model.unet import UNet
from segdist.ranks.launchers import RankEnvironment
from segdist.ranks.process_group import Ranks
from segdist.training.checkpoint import copy_to_cpu
from segdist.training.config import LossConfig, OptimConfig
from segdist.training.data_parallel import DataParallel
from segdist.training.learner import Learner
from segdist.training.losses import Loss
from segdist.training.preprocess import MicroBatch
from shards.manifest import IGNORE
from tests.support.states import same

CPU = torch.device("cpu")


def learner(
    optim: OptimConfig | None = None,
    norm: str = "group",
    loss: Any = "cross_entropy",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
) -> Learner:
    torch.manual_seed(0)
    model = UNet(1, 3, width=4, depth=2, norm=norm)
    # Users can't choose fp16 on a CPU, where it is slow, but its loss scaling is the same.
    chosen = Precision(precision, "for a test")
    alone = Ranks(RankEnvironment("single"), CPU)
    engine = DataParallel(model, Loss(LossConfig(name=loss), torch.ones(3)), chosen, alone, seed=0, compiled=False)
    return Learner(model, optim or OptimConfig(), engine, chosen, alone)


def batch(seed: int = 0, count: int = 8) -> MicroBatch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, 16, 16, generator=generator)
    truth = torch.randint(0, 3, (count, 16, 16), generator=generator, dtype=torch.uint8)
    truth[torch.rand(truth.shape, generator=generator) < 0.2] = IGNORE
    truth[: count // 2, :8] = IGNORE  # unevenly spread: a mean of the parts' means would differ
    return images, truth


@pytest.mark.parametrize("loss", ["cross_entropy", "cross_entropy+dice", "focal"])
@pytest.mark.parametrize("parts", [2, 3, 8])
def test_accumulation_gives_the_gradient_of_the_whole_batch(parts: int, loss: str) -> None:
    images, truth = batch()
    whole, cut = learner(loss=loss), learner(loss=loss)
    whole.step([(images, truth)], rate=0.1, number=0)
    cut.step(list(zip(images.tensor_split(parts), truth.tensor_split(parts), strict=True)), rate=0.1, number=0)
    for one, other in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert whole.figures().loss == pytest.approx(cut.figures().loss, rel=1e-5)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_bad_step_changes_nothing(norm: str, optimizer: str, poison: float) -> None:
    tested = learner(OptimConfig(optimizer=optimizer, ema_decay=0.9), norm)
    for number in range(2):
        tested.step([batch(number)], rate=0.01, number=number)
    tested.figures()
    before = copy_to_cpu(tested.state_dict())
    images, truth = batch(2)
    images[3, 0, 5, 5] = poison
    tested.step([(images, truth)], rate=0.01, number=2)
    after = tested.state_dict()
    for part in ("net", "optimizer", "average", "scaler", "loss_sums", "good_steps"):
        if part == "optimizer":  # except for the learning rate, a function of the step
            assert same(before[part]["state"], after[part]["state"])
        else:
            assert same(before[part], after[part]), part
    figures = tested.figures()
    assert (figures.skipped, figures.skipped_in_a_row) == (1, 1)
    tested.step([batch(3)], rate=0.01, number=3)
    assert not same(before["net"], tested.state_dict()["net"])
    figures = tested.figures()
    assert (figures.skipped, figures.skipped_in_a_row) == (1, 0)
    assert figures.loss == figures.loss


def test_bad_steps_do_not_affect_later_ones() -> None:
    with_it, without = learner(), learner()
    bad = (torch.full((8, 1, 16, 16), float("nan")), batch()[1])
    for item in (batch(0), bad, bad, batch(1)):
        with_it.step([item], rate=0.1, number=0)
    for item in (batch(0), batch(1)):
        without.step([item], rate=0.1, number=0)
    assert same(with_it.model.state_dict(), without.model.state_dict())
    assert with_it.figures().skipped == 2


def test_a_step_without_labels_changes_no_weights() -> None:
    tested = learner(OptimConfig(weight_decay=0.0))
    before = copy_to_cpu(tested.model.state_dict())
    images, truth = batch()
    tested.step([(images, torch.full_like(truth, IGNORE))], rate=0.1, number=0)
    assert same(before, tested.model.state_dict())
    assert tested.figures().loss == 0


def test_clipping_limits_the_update() -> None:
    plain, clipped = (learner(OptimConfig(momentum=0, weight_decay=0, clip_norm=norm)) for norm in (0.0, 1e-3))
    start = [parameter.detach().clone() for parameter in plain.model.parameters()]
    for tested in (plain, clipped):
        tested.step([batch()], rate=1.0, number=0)
    assert plain.figures().grad_norm == clipped.figures().grad_norm > 1e-3

    def moved(tested: Learner) -> float:
        return float(
            sum((p.detach() - s).square().sum() for p, s in zip(tested.model.parameters(), start, strict=True)) ** 0.5
        )

    assert moved(clipped) == pytest.approx(1e-3, rel=1e-2)
    assert moved(plain) > moved(clipped)


def test_the_average_follows_the_weights() -> None:
    tested = learner(OptimConfig(ema_decay=0.5))
    expected = copy_to_cpu(tested.model.state_dict())
    for number in range(5):
        tested.step([batch(number)], rate=0.1, number=number)
        share = 1 - min(0.5, (1 + number) / (10 + number))
        for name, value in tested.model.state_dict().items():
            expected[name] += share * (value - expected[name])
    for name, value in tested.best_model.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_training_resumes_from_a_state_with_the_same_bits() -> None:
    one = learner(OptimConfig(optimizer="adamw", ema_decay=0.9), "batch")
    for number in range(3):
        one.step([batch(number)], rate=0.01, number=number)
    other = learner(OptimConfig(optimizer="adamw", ema_decay=0.9), "batch")
    other.load_state_dict(copy_to_cpu(one.state_dict()))
    for tested in (one, other):
        tested.step([batch(9)], rate=0.01, number=3)
    assert same(one.state_dict(), other.state_dict())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_takes_nearly_the_same_step(precision: Literal["bf16", "fp16"]) -> None:
    exact, reduced = (learner(OptimConfig(momentum=0), precision=name) for name in ("fp32", precision))
    start = torch.cat([parameter.detach().flatten() for parameter in exact.model.parameters()])
    moves = []
    for tested in (exact, reduced):
        tested.step([batch()], rate=1.0, number=0)
        moves.append(torch.cat([parameter.detach().flatten() for parameter in tested.model.parameters()]) - start)
    assert torch.cosine_similarity(*moves, dim=0) > 0.97
    # The scale of 2^16 has been removed from gradients and norm.
    assert float(moves[1].norm() / moves[0].norm()) == pytest.approx(1, abs=0.05)
    assert reduced.figures().grad_norm == pytest.approx(exact.figures().grad_norm, rel=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in reduced.model.parameters())


def test_overflowing_scaled_gradients_only_halve_the_scale() -> None:
    tested = learner(OptimConfig(optimizer="adamw", ema_decay=0.9), "batch", precision="fp16")
    tested.step([batch()], rate=0.01, number=0)
    tested.scaler.update(2.0**40)  # too large for any fp16 gradient
    before = copy_to_cpu(tested.state_dict())
    tested.step([batch(1)], rate=0.01, number=1)
    after = tested.state_dict()
    assert same([before[part] for part in ("net", "average")], [after[part] for part in ("net", "average")])
    assert same(before["optimizer"]["state"], after["optimizer"]["state"])
    assert tested.figures().loss_scale == 2.0**39
    other = learner(OptimConfig(optimizer="adamw", ema_decay=0.9), "batch", precision="fp16")
    other.load_state_dict(copy_to_cpu(after))
    for each in (tested, other):
        each.step([batch(2)], rate=0.01, number=2)
    assert same(tested.state_dict()["scaler"], other.state_dict()["scaler"])
