"""Every number in every config declares its valid range; values outside it are refused with the flag and the range."""

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import config as jobs_config
from segdist.core.errors import UserError
from segdist.core.ranges import Count, InsideShare, PartialShare, Positive, Range, check_ranges, without_range
from segdist.inference.config import InferConfig
from segdist.model.config import ExportConfig
from segdist.set_job import MakeShardsJob
from segdist.training.config import TrainConfig
from slurm.profiles import Profile

CONFIGS = [TrainConfig, InferConfig, MakeShardsJob, ExportConfig, Profile] + [
    value for value in vars(jobs_config).values() if isinstance(value, type) and value.__module__ == "jobs.config"
]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_number_in_every_config_has_a_range(config: type) -> None:
    assert without_range(config) == []


@dataclass(frozen=True)
class Inner:
    """A section."""

    rate: Positive = 0.1
    betas: tuple[PartialShare, PartialShare] = (0.9, 0.99)
    clip_norm: float = 0.0


@dataclass(frozen=True)
class Outer:
    """A config."""

    steps: Count | None = None
    shares: tuple[InsideShare, ...] = ()
    box: tuple[Count, Positive] = (1, 0.5)
    inner: Inner = field(default_factory=Inner)


def test_a_number_without_a_range_is_detected() -> None:
    assert without_range(Outer) == ["inner.clip_norm"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Outer(steps=0), "--steps 0: must be at least 1"),
        (Outer(shares=(0.5, 75.0)), "--shares 75.0: must be above 0 and below 1"),
        (Outer(box=(1, 0.0)), "--box 0.0: must be above 0"),
        (Outer(inner=Inner(rate=math.inf)), "--inner.rate inf: must be above 0"),
        (Outer(inner=Inner(rate=math.nan)), "--inner.rate nan: must be above 0"),
        (Outer(inner=Inner(betas=(0.9, 2.0))), "--inner.betas 2.0: must be at least 0 and below 1"),
    ],
)
def test_a_value_out_of_range_is_named_with_the_range(config: Outer, words: str) -> None:
    with pytest.raises(UserError) as error:
        check_ranges(config)
    assert str(error.value) == words


def test_keys_from_a_file_are_named_as_file_keys() -> None:
    with pytest.raises(UserError, match=r"^mine\.toml: inner\.rate = -1: must be above 0$"):
        check_ranges(Outer(inner=Inner(rate=-1)), origin="mine.toml")


@given(st.floats(), st.floats(-10, 10), st.floats(0, 10), st.booleans(), st.booleans())
def test_a_range_is_an_interval(value: float, low: float, width: float, above: bool, below: bool) -> None:
    inside = value in Range(low, low + width, above, below)
    assert inside == (
        low <= value <= low + width and not ((above and value == low) or (below and value == low + width))
    )


@pytest.mark.parametrize(
    "words",
    [
        "--optim.clip-norm -1",
        "--optim.gamma -1",
        "--optim.gamma 0",
        "--optim.milestones 50 75",
        "--optim.milestones 0.7 0.3",
        "--loss.class-weights given --loss.weights -1 -1",
        "--loss.class-weights given --loss.weights 0 0",
        "--loss.class-weights given --loss.weights nan 1",
        "--optim.lr inf",
        "--optim.betas 2 2",
        "--optim.momentum -1",
        "--optim.weight-decay -0.1",
        "--optim.nesterov --optim.momentum 0",
        "--threads -3",
        "--seed -5",
        "--seed 9223372036854775808",
        "--data-weights 0 1",
        "--checkpoint.every-steps -1",
        "--checkpoint.every-minutes nan",
        "--validate-every -1",
        "--model.depth 0",
        "--augment.rotate 181",
        "--tracking.finish-timeout 0",
    ],
)
def test_training_is_refused_before_anything_is_read(words: str) -> None:
    from jobs.train import main

    with pytest.raises(UserError) as error:
        main(["-f", "nowhere", *words.split(), "--dry-run"])
    flag = next(word for word in words.split()[::-1] if word.startswith("--"))
    assert str(error.value).startswith((flag, "--optim.nesterov"))


@pytest.mark.parametrize(
    "words",
    ["--overlap nan", "--overlap 1", "--tile -1", "--batch-size 0", "--roi 0 0 0 5", "--threads -1",
     "--output.figures -1", "--output.preview-side 1"],
)  # fmt: skip
def test_inference_is_refused_before_anything_is_read(words: str) -> None:
    from jobs.infer import main

    with pytest.raises(UserError) as error:
        main(["-m", "nowhere", "-f", "nowhere", *words.split(), "--dry-run"])
    assert str(error.value).startswith(words.split()[0])
