"""A CUDA graph gives the same bits as the calls it recorded."""

from typing import Any

import pytest
import torch

from segdist.inference.tiler import TileModel
from segdist.model.precision import Precision
from segdist.model.recorded import FIRST_CALLS, Recorded
from segdist.model.unet import UNet
from segdist.ranks.launchers import RankEnvironment
from segdist.ranks.process_group import Ranks
from segdist.training.config import LossConfig, OptimConfig
from segdist.training.data_parallel import DataParallel
from segdist.training.learner import Learner
from segdist.training.losses import Loss

STEPS = 6


def learner(loss: str, recorded: bool) -> Learner:
    gpu = torch.device("cuda")
    torch.manual_seed(0)
    model: Any = UNet(1, 3, width=8, depth=2).to(gpu).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    precision, alone = Precision("bf16", "for a test"), Ranks(RankEnvironment("single"), gpu)
    config = LossConfig(name=loss)  # type: ignore[arg-type]
    engine = DataParallel(model, Loss(config, torch.ones(3, device=gpu)), precision, alone, compiled=False)
    assert engine._recorded is not None
    if not recorded:
        engine._recorded = None
    return Learner(model, OptimConfig(), engine, precision, alone)


@pytest.mark.gpu
@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "cross_entropy+dice"])
def test_a_recorded_step_has_the_bits_of_an_unrecorded_one(loss: str) -> None:
    one, other = learner(loss, recorded=True), learner(loss, recorded=False)
    generator = torch.Generator("cuda").manual_seed(1)
    for number in range(STEPS):
        images = torch.randn(8, 1, 32, 32, device="cuda", generator=generator)
        truth = torch.randint(0, 3, (8, 32, 32), device="cuda", generator=generator, dtype=torch.uint8)
        for this in (one, other):
            this.step([(images, truth)], rate=0.1, number=number)
    recorded = one.engine._recorded
    assert recorded is not None
    assert recorded._graph is not None, "nothing was recorded"
    for (name, value), expected in zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name
    assert one.figures() == other.figures()


@pytest.mark.gpu
def test_bad_gradients_of_a_recorded_step_leave_no_trace() -> None:
    this = learner("cross_entropy", recorded=True)
    images = torch.randn(8, 1, 32, 32, device="cuda")
    truth = torch.zeros(8, 32, 32, dtype=torch.uint8, device="cuda")
    for number in range(FIRST_CALLS + 1):
        this.step([(images, truth)], rate=0.1, number=number)
    before = {name: value.clone() for name, value in this.model.state_dict().items()}
    this.step([(images * torch.nan, truth)], rate=0.1, number=FIRST_CALLS + 1)
    assert all(torch.equal(value, before[name]) for name, value in this.model.state_dict().items())
    this.step([(images, truth)], rate=0.1, number=FIRST_CALLS + 2)
    assert this.figures().skipped == 1
    assert all(value.isfinite().all() for value in this.model.state_dict().values())


@pytest.mark.gpu
def test_recorded_tiles_have_the_bits_of_the_model() -> None:
    torch.manual_seed(0)
    model = TileModel(UNet(1, 3, width=8).cuda().eval(), 3, (0.0,), (1.0,), "cuda", precision=Precision("bf16", "test"))
    with torch.inference_mode():
        for _ in range(FIRST_CALLS + 3):
            tiles = torch.randn(16, 1, 48, 48, device="cuda")
            assert torch.equal(model.probabilities(tiles), model._probabilities(tiles))


@pytest.mark.gpu
def test_work_that_cannot_be_recorded_is_still_computed(capsys: pytest.CaptureFixture[str]) -> None:
    recorded: Recorded[torch.Tensor] = Recorded("a step that asks the device")

    def asking(values: torch.Tensor) -> torch.Tensor:
        return values * float(values.sum().item())

    for count in range(FIRST_CALLS + 3):
        values = torch.full((2,), float(count), device="cuda")
        assert recorded(asking, values).tolist() == [2.0 * count**2] * 2
    assert capsys.readouterr().err.count("can't be recorded as a CUDA graph") == 1
