"""Learning rates against hand-computed values, and optimizers that skip a step without side effects."""

import pytest
import torch
from torch import nn

from segdist.training.config import OptimConfig
from segdist.training.optimizers import build_optimizer, learning_rate


def rates(config: OptimConfig, steps: int = 100) -> list[float]:
    return [learning_rate(config, step, steps) for step in range(steps)]


def test_the_step_schedule_decays_in_the_second_half() -> None:
    values = rates(OptimConfig(lr=0.01, schedule="step"))
    assert values[0] == values[49] == 0.01
    assert values[50] == values[74] == pytest.approx(0.001)
    assert values[75] == values[99] == pytest.approx(0.0001)


def test_the_cosine_schedule_falls_to_almost_zero() -> None:
    values = rates(OptimConfig(lr=1.0, schedule="cosine"))
    assert values[0] == 1.0
    assert values[50] == pytest.approx(0.5)
    assert values[99] < 0.001
    assert values == sorted(values, reverse=True)


def test_the_polynomial_schedule_matches_its_formula() -> None:
    values = rates(OptimConfig(lr=1.0, schedule="polynomial", power=0.9))
    assert values[50] == pytest.approx(0.5**0.9)


def test_the_one_cycle_schedule_rises_and_falls() -> None:
    values = rates(OptimConfig(lr=1.0, schedule="onecycle", warmup=0.25))
    assert values[0] == pytest.approx(1 / 25)
    assert values[25] == 1.0
    assert values[:26] == sorted(values[:26])
    assert values[25:] == sorted(values[25:], reverse=True)
    assert values[99] < 0.01


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "polynomial"])
def test_warm_up_rises_linearly_to_the_base_rate(schedule: str) -> None:
    values = rates(OptimConfig(lr=1.0, schedule=schedule, warmup=0.1))
    assert values[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("bad_first", [True, False])
def test_a_step_with_found_inf_changes_nothing(optimizer: str, bad_first: bool) -> None:
    """This includes the first step, in which SGD creates its momentum."""
    model = nn.Linear(3, 2)
    fused = build_optimizer(OptimConfig(optimizer=optimizer, lr=0.1), model)
    plain_model = nn.Linear(3, 2)
    plain_model.load_state_dict(model.state_dict())
    plain = build_optimizer(OptimConfig(optimizer=optimizer, lr=0.1), plain_model)

    def step(target: nn.Module, optimizer: torch.optim.Optimizer, gradient: float) -> None:
        for parameter in target.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.found_inf = torch.tensor(float(gradient != gradient))
        optimizer.grad_scale = None
        optimizer.step()

    gradients = [float("nan"), 1.0, 2.0] if bad_first else [1.0, float("nan"), 2.0]
    for gradient in gradients:
        step(model, fused, gradient)
    for gradient in (1.0, 2.0):
        step(plain_model, plain, gradient)
    for one, other in zip(model.parameters(), plain_model.parameters(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(fused.state.values(), plain.state.values(), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_adamw_does_not_decay_biases_and_norms() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    optimizer = build_optimizer(OptimConfig(optimizer="adamw", weight_decay=0.1), model)
    decays = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert [decays[id(parameter)] for parameter in model.parameters()] == [0.1, 0.0, 0.0, 0.0]
