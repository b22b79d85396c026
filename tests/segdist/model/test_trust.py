"""A model file can name code; only known or trusted code is imported."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from segdist import Predictor
from segdist.core.errors import UserError
from segdist.core.model_header import CARD_KEY
from segdist.model import trust
from segdist.model.card import card_text
from segdist.model.config import UNET
from segdist.model.model_file import load_model, load_weights
from segdist.model.unet import UNet
from tests.support.inference_parts import write_images
from tests.support.model_files import CARD, write_model_file
from tests.support.programs import QUIET, ROOT, job, run
from tests.support.sets import tiny_set

OTHER = "stranger.module:make"
MODULE = """
from pathlib import Path
from segdist.model.unet import UNet
Path("imported").touch()
def make(in_channels, classes):
    Path("called").touch()
    return UNet(in_channels, classes, width=4, depth=2)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a package `stranger` and a model file that names it, and an empty config folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger" / "module.py").write_text(MODULE)
    write_model_file(tmp_path / "model.safetensors", model={"factory": OTHER})
    return tmp_path


def test_an_untrusted_factory_is_not_even_imported(place: Path) -> None:
    with pytest.raises(UserError, match=r"--trust-factory stranger\.module"):
        load_model(place / "model.safetensors")
    with pytest.raises(UserError, match="can name any code"):
        Predictor(place / "model.safetensors")
    assert not (place / "imported").exists()


def test_a_trusted_factory_loads(place: Path) -> None:
    Predictor(place / "model.safetensors", trust_factory="stranger.module")
    load_model(place / "model.safetensors", trusted=[OTHER])
    with pytest.raises(UserError, match="trust"):
        load_model(place / "model.safetensors", trusted=["stranger"])


def test_a_factory_used_in_training_is_trusted_from_then_on(place: Path) -> None:
    trust.note_trained_with(OTHER)
    trust.note_trained_with(OTHER)
    trust.note_trained_with(UNET)
    lines = (place / "config" / "segdist" / "factories.jsonl").read_text().splitlines()
    noted = [json.loads(line) for line in lines]
    assert [(line["format_version"], line["factory"]) for line in noted] == [(1, OTHER)]
    load_model(place / "model.safetensors")


def test_damaged_notes_make_nothing_trusted(place: Path) -> None:
    notes = place / "config" / "segdist" / "factories.jsonl"
    notes.parent.mkdir(parents=True)
    notes.write_bytes(f'\xff{OTHER}\n"{OTHER}"\n{{"factory": "{OTHER}"}}\n[1]\n'.encode("latin-1"))
    with pytest.raises(UserError, match="trust"):
        load_model(place / "model.safetensors")


def test_a_missing_config_folder_is_reported(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place / "file"))
    trust.note_trained_with(OTHER)
    assert "will require --trust-factory stranger.module" in capsys.readouterr().err


@pytest.mark.slow
def test_infer_asks_for_trust_until_training_has_used_the_factory(place: Path) -> None:
    """Inference refuses the factory until training has used it."""
    tiny_set(place / "data")
    write_images(place / "images", {"one": (40, 40)})
    environ = {"XDG_CONFIG_HOME": str(place / "config"), "PYTHONPATH": f"{ROOT}:{place}"}
    infer = job("infer", ["-m", "model.safetensors", "-i", "images", "-o", "out", *QUIET])
    refused = run(infer, place, check=False, **environ)
    assert refused.returncode == 2
    assert "--trust-factory stranger.module" in refused.stderr
    assert not (place / "imported").exists()
    assert not (place / "out").exists()
    run([*infer, "--trust-factory", "stranger.module"], place, **environ)
    own = ["-f", "tiny", "--steps", "1", "--name", "own", "--model.factory", OTHER, *QUIET]
    run(job("train", own), place, **environ)
    run(infer, place, **environ)


def test_a_warm_start_reads_tensors_and_runs_no_code(place: Path) -> None:
    weights, card = load_weights(place / "model.safetensors")
    assert card.model.factory == OTHER
    assert weights["head.weight"].shape == (2, 4, 1, 1)
    assert not (place / "imported").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"width": 10**9, "depth": 2}},
        {"model": {"width": 4, "depth": 10**9}},
        {"model": {"width": 4, "depth": 2, "kwargs": {"no": 1}}},
        {"channels": 10**12},
        {"channels": -1},
        {"patch": 10**9},
        {"stride_multiple": 0},
        {"mean": [1e999]},
        {"std": []},
        {"dtype": "object"},
        {"classes": []},
    ],
)
def test_a_card_with_impossible_values_is_refused_without_taking_memory(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_model(write_model_file(tmp_path / "model.safetensors", **changes))


def test_a_model_built_without_memory_gets_the_bits_of_its_file(tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = UNet(1, 2, width=4, depth=2).state_dict()
    save_file(state, tmp_path / "m.safetensors", metadata={CARD_KEY: card_text(CARD)})
    model, _ = load_model(tmp_path / "m.safetensors")
    loaded = model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], value) and loaded[name].device.type == "cpu" for name, value in state.items())
