"""Model cards: read without torch, from files of this and earlier versions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from segdist.core.errors import UserError
from segdist.core.model_header import CARD_KEY, read_metadata
from segdist.core.parsing import from_dict
from segdist.model.card import CARD_VERSION, read_card
from segdist.model.config import UNET, ModelConfig
from segdist.model.model_file import load_model, save_model
from segdist.model.share_intervals import ShareIntervals
from segdist.model.unet import UNet
from tests.support.model_files import CARD, write_model_file


def test_a_card_survives_a_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, UNet(1, 2, width=4, depth=2).state_dict(), CARD)
    assert read_card(path) == CARD
    assert json.loads(read_metadata(path)[CARD_KEY])["format_version"] == CARD_VERSION


def test_a_card_without_a_version_and_with_the_old_unet_name_is_read(tmp_path: Path) -> None:
    old = {"factory": "segdist.unet:UNet", "kwargs": {}, "stride_multiple": 0, "width": 4, "depth": 2}
    path = write_model_file(tmp_path / "old.safetensors", format_version=None, model=old)
    assert read_card(path) == CARD
    model, _ = load_model(path)
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 2, 8, 8)


def test_the_old_unet_name_means_the_same_model_in_any_file() -> None:
    old = from_dict(ModelConfig, {"factory": "segdist.unet:UNet", "width": 8}, "old.toml")
    assert old == ModelConfig(width=8)
    assert old.factory == UNET


def test_a_card_from_a_newer_program_is_refused_with_one_sentence(tmp_path: Path) -> None:
    path = write_model_file(tmp_path / "new.safetensors", format_version=CARD_VERSION + 1, attention=True)
    with pytest.raises(
        UserError, match=rf"new\.safetensors: format version {CARD_VERSION + 1}, written by a newer segdist"
    ):
        read_card(path)


@pytest.mark.parametrize("content", [b"", b"no model", b"\xff" * 100])
def test_a_file_that_is_not_a_model_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "torn.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"torn\.safetensors: damaged"):
        read_card(path)
    with pytest.raises(UserError, match="no such model file"):
        read_card(tmp_path / "nowhere.safetensors")


def test_a_truncated_model_file_is_refused(tmp_path: Path) -> None:
    path = write_model_file(tmp_path / "cut.safetensors")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="damaged"):
        read_card(path)


def test_cards_are_read_without_torch(tmp_path: Path) -> None:
    path = write_model_file(tmp_path / "model.safetensors")
    code = (
        "import sys; from pathlib import Path; from segdist.model.card import read_card; "
        "print(read_card(Path(sys.argv[1])).channels, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_an_impossible_temperature_is_refused(tmp_path: Path, temperature: float) -> None:
    path = write_model_file(tmp_path / "cold.safetensors", temperature=temperature)
    with pytest.raises(UserError, match=rf"damaged or forged: a temperature of {temperature}"):
        read_card(path)


def test_a_card_without_a_temperature_means_one(tmp_path: Path) -> None:
    assert (
        read_card(write_model_file(tmp_path / "old.safetensors", format_version=2, temperature=None)).temperature == 1
    )


def test_a_version_4_card_has_no_share_intervals(tmp_path: Path) -> None:
    old = write_model_file(tmp_path / "old.safetensors", format_version=4, share_intervals=None)
    assert read_card(old).share_intervals is None


@pytest.mark.parametrize("changed", [{"widths": [0.1]}, {"widths": [0.1, -1.0]}, {"images": 3}, {"level": 1.5}])
def test_impossible_intervals_are_refused(tmp_path: Path, changed: dict[str, object]) -> None:
    sound: dict[str, object] = {"level": 0.9, "images": 20, "widths": [0.1, 0.2]}
    path = write_model_file(tmp_path / "sound.safetensors", share_intervals=sound)
    assert read_card(path).share_intervals == ShareIntervals(0.9, 20, (0.1, 0.2))
    path = write_model_file(tmp_path / "odd.safetensors", share_intervals=sound | changed)
    with pytest.raises(UserError, match="damaged or forged: intervals"):
        read_card(path)


def test_the_same_model_is_saved_as_the_same_bytes(tmp_path: Path) -> None:
    state, path = UNet(1, 2, width=4, depth=2).state_dict(), tmp_path / "model.safetensors"
    contents = set()
    for _ in range(8):
        save_model(path, state, CARD)
        contents.add(path.read_bytes())
    assert len(contents) == 1
    loaded, card = load_model(path)
    assert card == CARD
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
