"""`segdist shards inspect` and `verify`."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.cli import main
from shards.manifest import median_frequency_weights
from shards.read.inspect import contact_sheet, summary
from shards.read.reader import ShardSet


def test_the_summary_has_counts_classes_and_recipe(small_set: Path) -> None:
    shard_set = ShardSet(small_set)
    manifest = shard_set.manifest
    text = summary(shard_set)
    assert f"train     {manifest.samples('train')} patches in 8 shards" in text
    assert "test      3 source images" in text
    assert "line       #e69f00" in text
    assert "    patches.per-image = 6\n" in text
    assert "masks.classes = background line ellipse" in text
    assert f"{manifest.pixels[0] / sum(manifest.pixels):7.2%} of pixels" in text


def test_class_weights_are_inversely_proportional_to_shares_with_median_1() -> None:
    assert median_frequency_weights([800, 100, 100]) == [0.125, 1.0, 1.0]
    assert median_frequency_weights([600, 0, 300]) == [0.75, 0.0, 1.5]
    assert median_frequency_weights([0, 0]) == [0.0, 0.0]


def test_the_contact_sheet_shows_patches_next_to_their_masks(small_set: Path) -> None:
    shard_set = ShardSet(small_set)
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet(shard_set))))
    first = sheet[4:36, 4:36]
    mask = sheet[4:36, 36:68]
    colors = {tuple(color) for color in mask.reshape(-1, 3).tolist()}
    assert colors <= {info.color for info in shard_set.manifest.classes}
    assert (first[..., 0] == first[..., 2]).all()
    assert contact_sheet(shard_set) == contact_sheet(shard_set)
    assert contact_sheet(shard_set, seed=1) != contact_sheet(shard_set)


def test_the_inspect_command_runs(fresh_set: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = fresh_set()
    assert main(["shards", "inspect", "tiny", "--root", str(folder.parent)]) == 0
    assert "per class" in capsys.readouterr().out
    assert Image.open(folder / "contact_sheet.png").size[0] > 300
    assert main(["shards", "inspect", str(folder), "--split", "val", "--out", str(folder.parent / "val.png")]) == 0
    assert (folder.parent / "val.png").exists()


def test_the_verify_command_runs(fresh_set: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = fresh_set()
    assert main(["shards", "verify", str(folder)]) == 0
    assert "all checksums and records are correct" in capsys.readouterr().out
    (folder / "train-00001.tar").write_bytes(b"x")
    assert main(["shards", "verify", str(folder)]) == 3
    assert "damaged: " in capsys.readouterr().out
    assert main(["shards", "inspect", "nothing", "--root", str(folder.parent)]) == 2
