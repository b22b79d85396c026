"""Complete and unfinished sets from earlier and newer versions of the program."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from segdist.core.errors import UserError
from segdist.core.paths import BUILDING, MANIFEST, RECIPE
from segdist.training.config import TrainConfig
from segdist.training.data import TrainingData
from shards.build import recipe
from shards.build.build import make_shards
from shards.manifest import read_manifest
from tests.support.sets import contents, tiny_config, tiny_set


def change(path: Path, **values: object) -> None:
    """Change values in a JSON file; None removes a key."""
    changed = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))


def made_earlier(root: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> Path:
    """A set of recipe version 1, which had no balanced positions."""
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "RECIPE_VERSION", 1)
        config = tiny_config(root, **changes)
        make_shards(config, quiet=True)
    return config.folder


def test_a_set_of_recipe_version_1_can_be_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made_earlier(tmp_path, monkeypatch)
    assert read_manifest(folder).recipe["recipe_version"] == 1
    data = TrainingData(TrainConfig(data=(str(folder),), batch_size=8))
    batches = [batch.images.numpy().copy() for batch in islice(data.batches(0), data.steps_per_epoch)]
    assert len(batches) == data.steps_per_epoch
    assert all(np.ptp(batch) > 0 for batch in batches)


def test_a_finished_set_of_an_earlier_recipe_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made_earlier(tmp_path, monkeypatch)
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["recipe"]["patches"]["balance"]  # a setting newer than the set
    (folder / MANIFEST).write_text(json.dumps(manifest))
    before = contents(folder)
    make_shards(tiny_config(tmp_path))
    assert "by an earlier segdist (recipe version 1; this version's is 2); it is kept" in capsys.readouterr().out
    assert contents(folder) == before
    with pytest.raises(UserError, match=r"patches\.balance: 0\.0 → 0\.5"):
        make_shards(tiny_config(tmp_path, patches=replace(tiny_config(tmp_path).patches, balance=0.5)), quiet=True)


def test_an_unfinished_set_of_an_earlier_recipe_is_not_completed_with_different_patches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_earlier(tmp_path, monkeypatch, task="0/2")
    with pytest.raises(UserError, match=r"begun by an earlier segdist .*, which cuts other patches"):
        make_shards(tiny_config(tmp_path), quiet=True)
    make_shards(tiny_config(tmp_path, overwrite=True), quiet=True)
    assert contents(tmp_path / "tiny") == contents(tiny_set(tmp_path / "anew"))


def test_files_of_newer_versions_are_refused_with_one_sentence(tmp_path: Path) -> None:
    make_shards(tiny_config(tmp_path, task="0/2"), quiet=True)
    folder = tmp_path / "tiny" / BUILDING
    for path in (folder / RECIPE, folder / "train-00000.json"):
        before = path.read_bytes()
        change(path, format_version=99)
        with pytest.raises(UserError, match=rf"{path.name}: format version 99, written by a newer segdist"):
            make_shards(tiny_config(tmp_path), quiet=True)
        path.write_bytes(before)
    make_shards(tiny_config(tmp_path), quiet=True)
    change(tmp_path / "tiny" / MANIFEST, format_version=99)
    with pytest.raises(UserError, match=r"manifest\.json: format version 99, written by a newer segdist"):
        read_manifest(tmp_path / "tiny")


def test_notes_from_before_format_versions_are_read(tmp_path: Path) -> None:
    make_shards(tiny_config(tmp_path, task="0/1"), quiet=True)
    folder = tmp_path / "tiny"
    tars = {path: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    for path in (folder / BUILDING).iterdir():
        assert json.loads(path.read_text())["format_version"] == 1
        change(path, format_version=None)
    make_shards(tiny_config(tmp_path), quiet=True)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.tar")} == tars


def test_an_unreadable_note_is_ignored(tmp_path: Path) -> None:
    make_shards(tiny_config(tmp_path, task="0/1"), quiet=True)
    (tmp_path / "tiny" / BUILDING / "train-00000.json").write_bytes(b"\xff{")
    make_shards(tiny_config(tmp_path), quiet=True)
    assert contents(tmp_path / "tiny") == contents(tiny_set(tmp_path / "anew"))


@pytest.mark.parametrize("damage", [lambda text: text.replace(b'"patch"', b'"p\xe1tch"'), lambda text: text[:-5]])
def test_a_damaged_manifest_is_named(fresh_set: Callable[..., Path], damage: Callable[[bytes], bytes]) -> None:
    path = fresh_set() / MANIFEST
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"manifest\.json: damaged"):
        read_manifest(path.parent)
