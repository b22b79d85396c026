"""Steps of an exact learner: the same bits on any number of ranks, with all that a step can meet."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from segdist.model.precision import Precision
from segdist.model.unet import UNet
from segdist.ranks.process_group import Ranks
from segdist.training.checkpoint import copy_to_cpu
from segdist.training.config import LossConfig, OptimConfig
from segdist.training.exact_sums import ExactSums
from segdist.training.grid_sums import GridSums
from segdist.training.learner import Learner
from segdist.training.losses import Loss
from segdist.training.preprocess import MicroBatch
from shards.manifest import IGNORE
from shards.read.order import slots_of_rank
from tests.support.states import same
from tests.support.thread_ranks import on_ranks

GRAIN, GRAINS = 2, 8
BATCH = GRAIN * GRAINS
WORLD_SIZES = (1, 3, 8)


def learner(
    ranks: Ranks,
    optim: OptimConfig,
    model: Callable[[], nn.Module],
    loss: Any = "cross_entropy",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
) -> Learner:
    chosen = Precision(precision, "for a test")
    weights = torch.tensor([0.5, 1.0, 2.0])
    first = slots_of_rank(BATCH, ranks.rank, ranks.world_size, GRAIN).start // GRAIN
    own = model()
    engine = ExactSums(own, Loss(LossConfig(name=loss), weights), chosen, ranks, 7, GRAINS, first)
    return Learner(own, optim, engine, chosen, ranks)


def unet(norm: str) -> Callable[[], nn.Module]:
    """The same weights on each rank, made before the threads share torch's generator."""
    torch.manual_seed(0)
    state = UNet(1, 3, width=4, depth=2, norm=norm).state_dict()

    def make() -> nn.Module:
        own = UNet(1, 3, width=4, depth=2, norm=norm)
        own.load_state_dict(state)
        return own

    return make


def batch(seed: int) -> MicroBatch:
    """Images with ignored pixels, unevenly spread, and of many brightnesses."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(BATCH, 1, 16, 16, generator=generator) * torch.rand(BATCH, 1, 1, 1, generator=generator) * 3
    truth = torch.randint(0, 3, (BATCH, 16, 16), generator=generator, dtype=torch.uint8)
    truth[torch.rand(truth.shape, generator=generator) < 0.2] = IGNORE
    truth[: BATCH // 3, :8] = IGNORE
    if seed == 2:  # skipped: one grain has a NaN
        images[5, 0, 3, 3] = float("nan")
    if seed == 3:  # nothing labeled
        truth[:] = IGNORE
    if seed == 4:  # gradients far beyond the headroom of the grid
        images *= 1e6
    return images, truth


def step(
    ranks: Ranks, make: Callable[[Ranks], Learner], state: dict[str, Any] | None, number: int
) -> tuple[dict[str, Any], Any]:
    """A rank's part of step `number` after `state`: the state after it, and its figures."""
    own = make(ranks)
    if state is not None:
        own.load_state_dict(copy_to_cpu(state))
    images, truth = batch(number)
    slots = slots_of_rank(BATCH, ranks.rank, ranks.world_size, GRAIN)
    grains = [slice(start, start + GRAIN) for start in range(slots.start, slots.stop, GRAIN)]
    own.step([(images[part], truth[part]) for part in grains], rate=0.05, number=number)
    after = copy_to_cpu(own.state_dict())
    return after, own.figures()


def trained(world_sizes: tuple[int, ...], make: Callable[[Ranks], Learner], steps: int = 6) -> dict[str, Any]:
    """State and figures after `steps` steps, with another number of ranks at each of them, in turns."""
    state: dict[str, Any] | None = None
    rows = []
    for number, world_size in zip(range(steps), itertools.cycle(world_sizes)):
        work = partial(step, make=make, state=state, number=number)
        results = on_ranks(world_size, work)
        assert all(same(result[0], results[0][0]) for result in results), "the ranks don't agree with each other"
        state = results[0][0]
        state["loss_sums"] = state["loss_sums"].sum(dim=0, keepdim=True)
        rows.append({name: value for name, value in vars(results[0][1]).items() if name != "rank_seconds"})
    return {"state": state, "rows": rows}


def assert_same_for_any_world_size(make: Callable[[Ranks], Learner], steps: int = 6) -> dict[str, Any]:
    expected = trained((1,), make, steps)
    for world_sizes in (*((size,) for size in WORLD_SIZES[1:]), (2, 1, 5)):
        found = trained(world_sizes, make, steps)
        assert same(found["state"], expected["state"]), world_sizes
        assert str(found["rows"]) == str(expected["rows"]), world_sizes  # as text: NaN is NaN there
    return expected


@pytest.mark.parametrize(
    ("norm", "loss", "optim", "precision"),
    [
        ("batch", "cross_entropy", OptimConfig(clip_norm=0.1, ema_decay=0.9), "fp32"),
        ("group", "cross_entropy+dice", OptimConfig(optimizer="adamw", ema_decay=0.9), "fp32"),
        pytest.param("instance", "focal", OptimConfig(nesterov=True), "fp32", marks=pytest.mark.slow),
        pytest.param("batch", "dice", OptimConfig(optimizer="adamw"), "bf16", marks=pytest.mark.slow),
        pytest.param("batch", "cross_entropy", OptimConfig(), "fp16", marks=pytest.mark.slow),
    ],
)
def test_any_number_of_ranks_gives_the_same_bits(
    norm: str, loss: str, optim: OptimConfig, precision: Literal["fp32", "bf16", "fp16"]
) -> None:
    model = unet(norm)
    done = assert_same_for_any_world_size(lambda ranks: learner(ranks, optim, model, loss, precision))
    assert done["rows"][2]["skipped"] == 1
    if precision == "fp32":
        # The step that overflows the grid was done again, not skipped.
        assert [row["skipped"] for row in done["rows"]] == [0, 0, 1, 1, 1, 1]


class Odd(nn.Module):
    """A branch that no grain takes, one that only some take, an integer buffer, constants."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 1)
        self.never = nn.Parameter(torch.ones(3))
        self.sometimes = nn.Parameter(torch.ones(()))
        self.register_buffer("brightest", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf, 1e-30, 1.0]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.brightest += images.nan_to_num().abs().amax().long()
            self.mean.lerp_(images.nan_to_num().mean().reshape(1), 0.1)
        logits: torch.Tensor = self.conv(images)
        return logits * self.sometimes if images.nan_to_num().mean() > 0 else logits


def test_a_model_of_odd_parts_keeps_its_bits_too() -> None:
    torch.manual_seed(0)
    state = Odd().state_dict()

    def make() -> nn.Module:
        own = Odd()
        own.load_state_dict(state)
        return own

    done = assert_same_for_any_world_size(lambda ranks: learner(ranks, OptimConfig(weight_decay=0.1), make))
    after = done["state"]["net"]
    assert torch.equal(after["never"], state["never"]), "weight decay on what no grain reached"
    assert not torch.equal(after["sometimes"], state["sometimes"])
    assert torch.equal(after["mask"], state["mask"]), "a constant has lost bits"
    # Grain 0's, of the steps that were not skipped.
    first = [int(batch(number)[0][:GRAIN].nan_to_num().abs().amax()) for number in range(6) if number != 2]
    assert after["brightest"].tolist() == [sum(first)] * 2


def test_buffers_are_the_mean_over_grains_that_all_start_from_the_steps() -> None:
    torch.manual_seed(0)
    tested = on_ranks(1, lambda ranks: learner(ranks, OptimConfig(), nn_batch_norm))[0]
    images, truth = batch(0)
    tested.step([(images[i : i + GRAIN], truth[i : i + GRAIN]) for i in range(0, BATCH, GRAIN)], 0.1, 0)
    means = torch.stack([images[i : i + GRAIN].mean() for i in range(0, BATCH, GRAIN)])
    found = tested.model[0].running_mean  # type: ignore[index]
    torch.testing.assert_close(found, 0.1 * means.mean().reshape(1))
    assert tested.model[0].num_batches_tracked == 1  # type: ignore[index]


def nn_batch_norm() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 3, 1))


def test_an_exact_step_is_the_usual_one_up_to_rounding() -> None:
    """Group norm, which doesn't see the grains: the gradient of the whole batch."""
    model = unet("group")
    tested = on_ranks(1, lambda ranks: learner(ranks, OptimConfig(momentum=0, weight_decay=0), model))[0]
    images, truth = batch(0)
    plain = model()
    loss = Loss(LossConfig(), torch.tensor([0.5, 1.0, 2.0]))
    (loss.sums(plain(images), truth) / loss.counts(truth)).sum().backward()
    tested.step([(images[i : i + GRAIN], truth[i : i + GRAIN]) for i in range(0, BATCH, GRAIN)], 1.0, 0)
    for before, after in zip(plain.parameters(), tested.model.parameters(), strict=True):
        assert before.grad is not None
        torch.testing.assert_close(after, before.detach() - before.grad, rtol=1e-4, atol=1e-6)


def test_ranks_that_begin_with_other_weights_take_those_of_rank_0() -> None:
    def make(ranks: Ranks) -> dict[str, Any]:
        def other() -> nn.Module:
            own = nn_batch_norm()
            for tensor in own.state_dict().values():
                tensor.fill_(ranks.rank + 1)
            return own

        return learner(ranks, OptimConfig(), other).model.state_dict()

    for state in on_ranks(3, make):
        assert all(bool((tensor == 1).all()) for tensor in state.values())


def test_a_step_without_labels_keeps_the_grid_and_state_puts_it_back() -> None:
    model = unet("batch")
    tested = on_ranks(1, lambda ranks: learner(ranks, OptimConfig(), model))[0]
    images, truth = batch(0)
    grains = [(images[i : i + GRAIN], truth[i : i + GRAIN]) for i in range(0, BATCH, GRAIN)]
    tested.step(grains, 0.01, 0)
    before = copy_to_cpu(tested.state_dict())
    parameters = len(list(tested.model.parameters()))
    tested.step([(image, torch.full_like(labels, IGNORE)) for image, labels in grains], 0.01, 1)
    after = tested.state_dict()["engine"]["exponents"]
    assert torch.equal(after[:parameters], before["engine"]["exponents"][:parameters])
    tested.step([(image * 1e6, labels) for image, labels in grains], 0.01, 2)
    tested.load_state_dict(before)
    assert same(tested.state_dict()["engine"], before["engine"])


def test_weights_are_converted_to_lower_precision_once_a_step() -> None:
    class Conversions(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._to_copy.default and kwargs["dtype"] == torch.bfloat16:
                self.count += args[0].shape == (3, 1, 1, 1)
            return func(*args, **kwargs or {})

    tested = on_ranks(1, lambda ranks: learner(ranks, OptimConfig(), nn_batch_norm, precision="bf16"))[0]
    images, truth = batch(0)
    grains = [(images[i : i + GRAIN], truth[i : i + GRAIN]) for i in range(0, BATCH, GRAIN)]
    tested.step(grains, 0.1, 0)  # the first step is done twice
    weight = tested.model[1].weight.clone()  # type: ignore[index]
    with Conversions() as conversions:
        tested.step(grains, 0.1, 1)
        tested.step(grains, 0.1, 2)
    assert conversions.count == 2
    assert not torch.equal(tested.model[1].weight, weight)  # type: ignore[index]


def test_the_sums_are_taken_over_all_grains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each grain once: also where the ranks' shares are uneven."""
    added: list[int] = []
    add = GridSums.add

    def noted(self: GridSums, term: Any) -> None:
        added.append(len(term))
        add(self, term)

    monkeypatch.setattr(GridSums, "add", noted)
    for world_size in WORLD_SIZES:
        added.clear()
        shares = [slots_of_rank(BATCH, rank, world_size, GRAIN) for rank in range(world_size)]
        assert [slot for share in shares for slot in share] == list(range(BATCH))
        assert all(share.start % GRAIN == 0 and len(share) % GRAIN == 0 for share in shares)
        model = unet("group")
        trained((world_size,), lambda ranks: learner(ranks, OptimConfig(), model), steps=2)  # noqa: B023
        # The first step is done twice: its first pass finds out how large gradients are.
        assert len(added) == 3 * GRAINS
