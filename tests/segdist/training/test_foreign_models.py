"""User-supplied models: each is tried before training and either works or is refused with one clear sentence."""

from pathlib import Path

import pytest
import torch

from jobs import infer, train
from jobs.entry import run_job
from segdist.model.outputs import OutputError, split_outputs
from segdist.training.config import LossConfig
from segdist.training.losses import Loss
from tests.support.programs import QUIET, job, run
from tests.support.sets import tiny_set

TRAINING = ["-f", "tiny", "--name", "one", "-b", "4", "--steps", "4", "--epoch-steps", "2", *QUIET]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_set(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def factory(name: str) -> list[str]:
    return ["--model.factory", f"tests.support.models:{name}"]


@pytest.mark.parametrize("name", ["Plain", "Dictionary", "DeepSupervision", "UnusedHead", "Tied"])
def test_these_models_work_from_training_to_scores(place: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_job(train.main, [*TRAINING, *factory(name)]) == 0
    assert run_job(infer.main, ["-m", "one", "-f", "tiny", "--wandb", "off", "--quiet"]) == 0
    assert (place / "runs" / "one" / "predictions" / "tiny" / "scores.json").exists()
    warned = "get no gradient: extra_head.weight, extra_head.bias; they stay unchanged" in capsys.readouterr().err
    assert warned == (name == "UnusedHead")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Quarter", "returns logits of 8 x 8 for images of 32 x 32; they must have the same size"),
        ("OneMore", "returns 4 channels for 3 classes"),
        ("Nothing", "returns a NoneType that contains no tensor"),
        ("ExtraState", "the model's state holds _extra_state, which is not a tensor"),
        ("pretrained", "it can't read or download its files"),
        ("broken", "ZeroDivisionError: division by zero ("),
    ],
)
def test_these_models_are_refused_with_one_sentence(
    place: Path, name: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_job(train.main, [*TRAINING, *factory(name)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "model.factory" in said
    assert said.count("\n") == 1
    assert not list((place / "runs").glob("one/checkpoints/step-*"))


def test_batch_norm_over_one_value_is_refused_with_the_fix(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_job(train.main, [*TRAINING, *factory("Pooled"), "--accumulate", "4"]) == 2
    said = capsys.readouterr().err
    assert "4 patches (--batch-size) on 1 ranks with --accumulate 4 are one patch at a time" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [("UnusedHead", "parameters of the model get no gradient: extra_head.weight"), ("Dictionary", "")],
)
def test_these_models_work_on_several_ranks(place: Path, name: str, words: str) -> None:
    done = run(job("train", [*TRAINING, *factory(name)], ranks=2), place, check=False)
    assert (done.returncode != 0) == bool(words), done.stderr
    assert words in done.stderr
    assert "RuntimeError" not in done.stderr


@pytest.mark.slow
def test_exact_training_on_several_ranks_leaves_parameters_without_gradient_alone(place: Path) -> None:
    done = run(job("train", [*TRAINING, *factory("UnusedHead"), "--exact", "--grain", "2"], ranks=2), place)
    assert "they stay unchanged" in done.stderr


def test_auxiliary_outputs_are_weighted() -> None:
    logits, other = torch.randn(2, 2, 3, 8, 8)
    truth = torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8)

    def loss(outputs: object, weight: float) -> torch.Tensor:
        return Loss(LossConfig(auxiliary=weight), torch.ones(3)).sums(outputs, truth)

    both = {"aux": other, "out": logits}
    assert torch.equal(loss(both, 0.0), loss(logits, 0.5))
    assert torch.allclose(loss(both, 0.5), loss(logits, 0) + 0.5 * loss(other, 0))
    assert torch.equal(loss((logits, [other]), 0.5), loss(both, 0.5))


def test_the_main_output_is_found_by_name_or_position() -> None:
    main, other = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)

    class WithLogits:
        logits = main

    for outputs in (main, {"aux": other, "out": main}, {"x": main, "y": other}, (main, other), [main], WithLogits()):
        assert split_outputs(outputs, 3, (4, 4))[0] is main
    features = torch.zeros(1, 64, 4, 4)
    assert split_outputs({"features": features, "logits": main}, 3, (4, 4)) == (main, [])
    with pytest.raises(OutputError, match="a tensor of 2 dimensions"):
        split_outputs(torch.zeros(1, 3), 3, (4, 4))
