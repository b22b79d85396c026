"""Factories as users write them: next to their data, with pretrained weights, with downloads."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from segdist.core.errors import UserError
from segdist.model import trust
from segdist.model.card import ModelCard
from segdist.model.config import ModelConfig
from segdist.model.factory import build_model
from segdist.model.model_file import load_model, save_model
from tests.support.inference_parts import CLASSES
from tests.support.programs import ROOT

MODULE = """
from urllib.error import URLError
from torch import nn

class Plain(nn.Conv2d):
    def __init__(self, in_channels, num_classes, weights="imagenet", pretrained=False):
        if weights or pretrained:
            raise URLError("<urlopen error [Errno -2] Name or service not known>\\n more")
        super().__init__(in_channels, num_classes, 3, padding=1)

class Auxiliary(nn.Module):
    def __init__(self, in_channels, num_classes, weights=None):
        super().__init__()
        self.main = nn.Conv2d(in_channels, num_classes, 3, padding=1)
        if weights:
            self.auxiliary = nn.Conv2d(in_channels, num_classes, 3, padding=1)

def fetching(in_channels, num_classes, pretrained=False):
    return Plain(in_channels, num_classes, weights=None, pretrained=pretrained)
"""


def write_module(folder: Path, name: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(MODULE)


def save(path: Path, config: ModelConfig) -> None:
    card = ModelCard(config, CLASSES, 1, "uint8", 16, (0.0,), (1.0,), 1)
    save_model(path, torch.nn.Conv2d(1, len(CLASSES), 3, padding=1).state_dict(), card)


@pytest.fixture
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_a_factory_in_the_current_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_config: None
) -> None:
    write_module(tmp_path, "nets_here")
    monkeypatch.chdir(tmp_path)
    model = build_model(ModelConfig(factory="nets_here:fetching"), 1, 3)
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 3, 8, 8)
    with pytest.raises(UserError, match="start from the module's folder"):
        build_model(ModelConfig(factory="nets_nowhere:fetching"), 1, 3)


def test_a_file_in_the_current_folder_does_not_shadow_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_config: None
) -> None:
    (tmp_path / "rich.py").write_text("raise SystemExit('wrong')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="module rich has no make"):
        build_model(ModelConfig(factory="rich:make"), 1, 3)


@pytest.mark.slow
def test_a_model_finds_its_factory_only_where_it_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_config: None
) -> None:
    write_module(tmp_path / "mine", "nets_mine")
    write_module(tmp_path / "theirs", "nets_theirs")
    for name, factory in (("mine", "nets_mine:fetching"), ("theirs", "nets_theirs:fetching")):
        save(tmp_path / f"{name}.safetensors", ModelConfig(factory=factory))
    monkeypatch.chdir(tmp_path / "mine")
    build_model(ModelConfig(factory="nets_mine:fetching"), 1, 3)
    trust.note_trained_with("nets_mine:fetching")
    trust.note_trained_with("nets_theirs:fetching")  # once, when it was installed
    code = "import sys; from segdist.model.model_file import load_model; load_model(sys.argv[1], trusted=sys.argv[2:])"
    for model, arguments, worked in (("mine", [], True), ("theirs", [], False), ("theirs", ["nets_theirs"], True)):
        command = [sys.executable, "-c", f"import sys; sys.path[0] = {str(ROOT)!r}; {code}"]
        command += [str(tmp_path / f"{model}.safetensors"), *arguments]
        done = subprocess.run(command, cwd=tmp_path / "theirs", capture_output=True, text=True)
        assert (done.returncode == 0) == worked, done.stderr


def test_a_model_with_weights_downloads_no_pretrained_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_config: None
) -> None:
    write_module(tmp_path, "nets_pretrained")
    monkeypatch.chdir(tmp_path)
    for factory, kwargs in (
        ("Plain", {}),
        ("Plain", {"weights": "other"}),
        ("Plain", {"weights": None, "pretrained": True}),
        ("fetching", {"pretrained": True}),
    ):
        config = ModelConfig(factory=f"nets_pretrained:{factory}", kwargs=kwargs)
        with pytest.raises(UserError, match=r"can't read or download its files .* in model\.kwargs") as error:
            build_model(config, 1, 3)
        assert len(str(error.value).splitlines()) == 1
        save(tmp_path / "model.safetensors", config)
        model, card = load_model(tmp_path / "model.safetensors", trusted=["nets_pretrained"])
        assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 3, 8, 8)
        assert card.model == config  # the file's settings win


def test_a_factory_whose_model_depends_on_pretrained_weights_is_called_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_config: None
) -> None:
    write_module(tmp_path, "nets_auxiliary")
    monkeypatch.chdir(tmp_path)
    config = ModelConfig(factory="nets_auxiliary:Auxiliary", kwargs={"weights": "imagenet"})
    state = build_model(config, 1, len(CLASSES)).state_dict()
    card = ModelCard(config, CLASSES, 1, "uint8", 16, (0.0,), (1.0,), 1)
    save_model(tmp_path / "model.safetensors", state, card)
    model, _ = load_model(tmp_path / "model.safetensors", trusted=["nets_auxiliary"])
    assert model.state_dict().keys() == state.keys()


def test_weights_that_do_not_fit_are_reported_in_one_line(tmp_path: Path) -> None:
    card = ModelCard(ModelConfig(width=4), CLASSES, 1, "uint8", 16, (0.0,), (1.0,), 16)
    state = build_model(ModelConfig(width=8), 1, len(CLASSES)).state_dict()
    save_model(tmp_path / "model.safetensors", state, card)
    with pytest.raises(UserError, match=r"don't fit segdist\.model\.unet:UNet: .*; and \d+ more") as error:
        load_model(tmp_path / "model.safetensors")
    assert len(str(error.value)) < 1000
    assert "\n" not in str(error.value)
