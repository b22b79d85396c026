"""The quality benchmark: reading sets, storing rows, and one tiny row from folder to table."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.benchmarks import quality
from tests.benchmarks.quality_recipes import drawn_recipe, read_recipes, recipe_of
from tests.benchmarks.quality_rows import Row, append_row, leave_one_out, read_rows, table
from tests.benchmarks.quality_sets import LabeledSet, find_sets


def labeled_set(folder: Path, images: int = 6, side: int = 64) -> Path:
    """A set of bright disks on noise; the last image is the test image, and value 7 belongs to no class."""
    random = np.random.default_rng(0)
    lines = ["image,mask,split"]
    for number in range(images):
        y, x = np.mgrid[:side, :side]
        disk = (y - random.integers(16, side - 16)) ** 2 + (x - random.integers(16, side - 16)) ** 2 < 144
        pixels = random.integers(0, 60, (side, side)) + 150 * disk
        mask = np.where(disk, 255, 0).astype(np.uint8)
        mask[0, 0] = 7
        for kind, array in (("images", pixels.astype(np.uint8)), ("masks", mask)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / kind / f"{number}.png")
        lines.append(f"images/{number}.png,masks/{number}.png,{'test' if number == images - 1 else 'train'}")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    (folder / "set.json").write_text(json.dumps({"classes": {"background": [0], "disk": [255]}, "ignore": [7]}))
    return folder


def row(recipe: str, name: str, score: float, seed: int = 0) -> Row:
    return Row(recipe, name, "test", 1000, seed, "fp32", score)


def test_options_name_images_and_classes(tmp_path: Path) -> None:
    options = LabeledSet(labeled_set(tmp_path / "disks")).shard_options("test", tmp_path / "scratch")
    assert options[2:] == [
        *("--masks.classes", "background=0", "disk=255", "--masks.ignore", "7", "--masks.unknown", "ignore")
    ]
    rows = Path(options[1]).read_text().splitlines()
    assert sum(line.endswith(",test") for line in rows) == 1
    assert f"{tmp_path}/disks/images/0.png" in rows[1]


def test_choosing_never_uses_test_images(tmp_path: Path) -> None:
    folder = labeled_set(tmp_path / "disks")
    options = LabeledSet(folder).shard_options("choose", tmp_path / "scratch")
    rows = Path(options[1]).read_text().splitlines()[1:]
    assert not any("images/5.png" in line for line in rows)
    assert [line.endswith(",test") for line in sorted(rows)] == [False, True, False, False, True]


def test_colors_become_class_values(tmp_path: Path) -> None:
    (tmp_path / "set.json").write_text('{"classes": {"soil": [[0, 0, 0]], "weed": [[255, 0, 16]]}}')
    (tmp_path / "pairs.csv").write_text("image,mask,split\na.png,b.png,train\n")
    options = LabeledSet(tmp_path).shard_options("test", tmp_path)
    assert options[2:5] == ["--masks.classes", "soil=#000000", "weed=#ff0010"]


def test_sets_are_found_in_a_folder_of_sets(tmp_path: Path) -> None:
    labeled_set(tmp_path / "a")
    labeled_set(tmp_path / "b")
    assert [found.name for found in find_sets([tmp_path])] == ["a", "b"]
    with pytest.raises(SystemExit, match="no set"):
        find_sets([tmp_path / "a" / "images"])


def test_rows_are_stored_and_later_ones_win(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for score in (0.5, 0.6):
        append_row(file, row("fast", "cells", score))
    append_row(file, row("fast", "cells", 0.7, seed=1))
    assert [found.mean_iou for found in read_rows(file)] == [0.6, 0.7]


def test_another_tools_row_needs_only_key_and_score(tmp_path: Path) -> None:
    values = {"recipe": "nnunet", "set": "cells", "part": "test", "budget": 4000, "seed": 0, "precision": "fp32"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(values | {"mean_iou": 0.8}) + "\n")
    assert read_rows(tmp_path / "rows.jsonl")[0].mean_iou == 0.8


def test_the_table_has_medians_and_the_mean_ratio_of_errors() -> None:
    rows = [row("fast", "a", 0.8), row("fast", "b", 0.6)]
    rows += [row("wide", "a", score, seed) for seed, score in enumerate((0.7, 0.9, 0.95))] + [row("wide", "b", 0.8)]
    assert table(rows)[2:] == ["| fast | 0.8000 | 0.6000 | 1.000 |", "| wide | 0.9000 | 0.8000 | 0.500 |"]


def test_leaving_a_set_out_shows_the_choice_of_the_others() -> None:
    rows = [row("fast", "a", 0.9), row("fast", "b", 0.5), row("wide", "a", 0.8), row("wide", "b", 0.9)]
    assert leave_one_out(rows) == [
        "without a: wide is chosen; there 0.8000, the best is fast with 0.9000",
        "without b: fast is chosen; there 0.5000, the best is wide with 0.9000",
    ]


def test_random_recipes_depend_on_the_set() -> None:
    assert drawn_recipe("cells", 3) == drawn_recipe("cells", 3)
    assert len({drawn_recipe(name, number) for name in ("cells", "roads") for number in range(6)}) == 12
    assert recipe_of("random-3", "cells", {}) == drawn_recipe("cells", 3)


def test_additional_recipes_are_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('["large patches"]\nshards = "--patches.size 128"\n')
    own = read_recipes(tmp_path / "mine.toml")
    assert recipe_of("large patches", "cells", own).shards == "--patches.size 128"
    with pytest.raises(SystemExit, match="large patches, auto, fast"):
        recipe_of("larger", "cells", own)


@pytest.mark.slow
def test_a_row_is_measured_from_folder_to_table_only_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = labeled_set(tmp_path / "disks")
    (tmp_path / "tiny.toml").write_text(
        '[tiny]\nshards = "--patches.size 32 --patches.per-image 4"\n'
        'train = "--preset paper --model.width 4 --model.depth 2"\n'
    )
    line = [str(folder), "--recipes", "tiny", "--recipe-file", str(tmp_path / "tiny.toml"), "--budget", "2"]
    line += ["--rows", str(tmp_path / "rows.jsonl"), "--work", str(tmp_path / "work")]
    assert quality.main(line) == 0
    first = capsys.readouterr().out
    assert "tiny on disks, seed 0" in first
    assert "| tiny | 0." in first
    (found,) = read_rows(tmp_path / "rows.jsonl")
    assert 0 < found.mean_iou <= 1
    assert found.cpu_seconds > 0
    assert found.steps >= 1
    assert quality.main(line) == 0
    again = capsys.readouterr().out
    assert "seed 0" not in again
    assert "| tiny | 0." in again
