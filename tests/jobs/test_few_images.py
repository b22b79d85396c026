"""Sets with few images: missing validation patches are reported, and empty tiles don't count as copies."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from jobs.cli import main
from segdist.core.errors import UserError
from shards.build.config import SplitConfig
from shards.images.opening import open_image
from tests.support.programs import QUIET, TINY_NET, job, run
from tests.support.sets import add, bright, build_own, labels, noise, save


def make(root: Path, *more: str) -> list[str]:
    folders = [
        "--images.folder",
        str(root / "images"),
        "--masks.folder",
        str(root / "masks"),
        "--root",
        str(root / "data"),
    ]
    classes = ["--masks.classes", "background=0", "cell=255", "--patches.size", "16", "--processes", "1"]
    return ["make-shards", "-f", "few", *folders, *classes, *more]


@pytest.mark.slow
def test_a_single_image_is_trained_on_without_a_score(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    add(tmp_path, "a.png", noise(0), labels())
    assert main(make(tmp_path)) == 0
    assert "0 validation patches: there is one image" in capfd.readouterr().err
    assert main(make(tmp_path, "--dry-run")) == 0
    assert "0 validation patches: there is one image" in capfd.readouterr().out
    settings = ["-f", "few", "--name", "few", "--steps", "4", "-b", "4", "--validate-every", "2", *TINY_NET, *QUIET[:2]]
    done = run(job("train", settings), tmp_path)
    assert "model, without a score, epoch 1, step 4" in done.stdout
    assert "the set has 0 validation patches" in done.stdout
    assert "-1.0" not in done.stdout + done.stderr
    summary = json.loads((tmp_path / "runs" / "few" / "summary.json").read_text())
    assert summary["best_mean_iou"] is None


def test_a_single_stack_or_group_is_named_as_the_reason(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pages = np.stack([noise(number) for number in range(3)])
    for kind, array in (("images", pages), ("masks", np.stack([bright(page) for page in pages]))):
        (tmp_path / kind).mkdir()
        tifffile.imwrite(tmp_path / kind / "s.tif", array, photometric="minisblack")
    assert main(make(tmp_path)) == 0
    assert "its pages stay together" in capfd.readouterr().err
    assert main(make(tmp_path, "--overwrite", "--split.validation-images", "s.tif#page=1")) == 0
    assert "0 validation patches" not in capfd.readouterr().err
    (tmp_path / "images" / "s.tif").unlink()
    (tmp_path / "masks" / "s.tif").unlink()
    for number in range(3):
        add(tmp_path, f"rat1_{number}.png", noise(number), labels())
    assert main(make(tmp_path, "--overwrite", "--split.group", r"rat\d")) == 0
    assert "all images are one group (--split.group)" in capfd.readouterr().err


def test_validation_images_of_background_alone_are_named_as_the_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        add(tmp_path, f"{number}.png", noise(number), labels() * (number != 1))
    assert main(make(tmp_path, "--split.validation-images", "1.png")) == 0
    assert "those of the 1 validation images hold only background" in capfd.readouterr().err


def test_tiles_without_data_do_not_count_as_copies(tmp_path: Path) -> None:
    for number in range(6):
        add(tmp_path, f"{number}.png", noise(number), labels())
    for number in (6, 7, 8):
        add(tmp_path, f"{number}.png", np.full((40, 30), 255, np.uint8), labels() * 0)
    split = SplitConfig(validation_images=("6.png",), test_images=("7.png",))
    assert len(build_own(tmp_path, split=split).sources["test"]) == 1
    almost = np.full((40, 30), 255, np.uint8)
    almost[0, 0] = 254
    for number in (6, 7):
        add(tmp_path, f"{number}.png", almost, labels() * 0)
    with pytest.raises(UserError, match="the same image in two splits"):
        build_own(tmp_path, name="copies", split=split)


def test_libraries_print_nothing_before_the_message(tmp_path: Path) -> None:
    for number in range(2):
        add(tmp_path, f"{number}.tif", noise(number), labels(), f"{number}.tif")
    path = tmp_path / "images" / "1.tif"
    content = bytearray(path.read_bytes())
    first = int.from_bytes(content[4:8], "little")
    content[first + 2 : first + 14] = b"\xff" * 12  # an invalid tag
    path.write_bytes(content)
    (tmp_path / "images" / "2.tif").write_bytes(path.read_bytes()[: first + 20])
    save(tmp_path / "masks" / "2.tif", labels())
    done = run(job("make_shards", make(tmp_path)[1:]), tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "images/2.tif" in done.stderr


def test_a_gif_is_one_image_and_an_animation_is_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (10, 200)]
    frames[0].save(tmp_path / "one.gif")
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    with open_image(tmp_path / "one.gif") as image:
        assert (image.read(0, 8) == 10).all()
    with pytest.raises(UserError, match=r"two\.gif: an animation"):
        open_image(tmp_path / "two.gif")
