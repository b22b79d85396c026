"""Awkward inputs: stacks, linked folders, rotated photos, long names, unreadable files."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from jobs import infer
from jobs.entry import run_job
from segdist import predict
from segdist.core.errors import UserError
from segdist.core.exit_codes import FINISHED, INCOMPLETE
from segdist.inference.config import InferConfig
from segdist.inference.inputs import find_inputs
from shards.build.config import SplitConfig
from shards.images.config import MasksConfig
from tests.support.inference_parts import CLASSES, labels, write_model
from tests.support.sets import build_own

RNG = np.random.default_rng(3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("run"))


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def job(model: Path, images: Path, out: Path, *more: str) -> int:
    return run_job(infer.main, ["-m", str(model), "-i", str(images), "-o", str(out), "--quiet", *more])


def names(*images: Path) -> list[str]:
    return [
        image.name for image in find_inputs(InferConfig(model=("m",), images=tuple(map(str, images))), CLASSES).images
    ]


@pytest.mark.parametrize("one_directory", [False, True])
def test_all_pages_of_a_stack_are_segmented(model: Path, tmp_path: Path, one_directory: bool) -> None:
    pages = noise(3, 20, 30)
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "stack.tif", pages, imagej=True, truncate=one_directory)
    assert job(model, tmp_path / "in", tmp_path / "out") == FINISHED
    found = {path.stem: labels(path) for path in (tmp_path / "out" / "masks").iterdir()}
    assert sorted(found) == ["stack", "stack-page1", "stack-page2"]
    for page, name in enumerate(sorted(found)):
        assert np.array_equal(found[name], predict(model, pages[page], device="cpu").argmax(axis=0))


def test_pages_are_matched_to_mask_pages_by_position(tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        with tifffile.TiffWriter(tmp_path / kind / "a.tif") as file:
            for page in noise(3, 20, 30):
                file.write(page, photometric="minisblack", metadata=None)
                if kind == "images":  # an overview after each
                    file.write(page[::2, ::2], photometric="minisblack", metadata=None, subfiletype=1)
    config = InferConfig(
        model=("m",),
        images=(str(tmp_path / "images"),),
        masks=MasksConfig(folder=tmp_path / "masks", classes=tuple(info.name for info in CLASSES)),
    )
    found = find_inputs(config, CLASSES).images
    assert [Path(image.path).name for image in found] == ["a.tif", "a.tif#page=2", "a.tif#page=4"]
    assert [Path(str(image.mask)).name for image in found] == ["a.tif", "a.tif#page=1", "a.tif#page=2"]
    (tmp_path / "list.csv").write_text("image;mask\nimages/a.tif;masks/a.tif\n", encoding="utf-16")
    rows = find_inputs(InferConfig(model=("m",), images=(str(tmp_path / "list.csv"),)), CLASSES).images
    assert [Path(str(image.mask)).name for image in rows] == ["a.tif", "a.tif#page=1", "a.tif#page=2"]


def test_linked_folders_are_searched_and_cycles_end(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere/x.png", noise(8, 8))
    save(tmp_path / "in/y.png", noise(8, 8))
    (tmp_path / "in/linked").symlink_to("../elsewhere")
    (tmp_path / "in/linked/back").symlink_to("../in")
    assert names(tmp_path / "in") == ["linked/x", "y"]


def test_short_rows_of_a_list_are_named(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(8, 8))
    (tmp_path / "list.csv").write_text("mask,image\nm.png,a.png\nm.png\n")
    with pytest.raises(UserError, match=r"list\.csv line 3: `image` is empty"):
        names(tmp_path / "list.csv")


@pytest.mark.parametrize("drawn_on", ["upright", "stored"])
def test_masks_decide_how_rotated_photos_are_read(model: Path, tmp_path: Path, drawn_on: str) -> None:
    pixels = noise(20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "in/a.png", pixels, exif=exif)
    shown = np.ascontiguousarray(np.rot90(pixels, -1)) if drawn_on == "upright" else pixels
    expected = predict(model, shown, device="cpu").argmax(axis=0).astype(np.uint8)
    save(tmp_path / "masks/a.png", expected)
    masks = ["--masks.folder", str(tmp_path / "masks")]
    assert job(model, tmp_path / "in", tmp_path / "out", *masks) == FINISHED
    assert np.array_equal(labels(tmp_path / "out/masks/a.png"), expected)
    assert job(model, tmp_path / "in", tmp_path / "forced", *masks, "--orientation", "apply") == (
        FINISHED if drawn_on == "upright" else INCOMPLETE
    )


def test_a_shard_set_records_how_its_rotated_photos_are_read(model: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(4):
        pixels = noise(20, 30)
        save(tmp_path / f"images/{number}.png", pixels, exif=exif)
        save(tmp_path / f"masks/{number}.png", predict(model, pixels, device="cpu").argmax(axis=0).astype(np.uint8))
    masks = MasksConfig(folder=tmp_path / "masks", classes=tuple(info.name for info in CLASSES))
    manifest = build_own(tmp_path, masks=masks, split=SplitConfig(test=0.5))
    assert manifest.recipe["images"]["orientation"] == "ignore"
    out = tmp_path / "out"
    assert (
        run_job(infer.main, ["-m", str(model), "--data", str(tmp_path / "data/own"), "-o", str(out), "--quiet"])
        == FINISHED
    )
    scores = json.loads((out / "scores.json").read_text())
    assert scores["mean_iou_over_images"] == 1.0
    assert {labels(path).shape for path in (out / "masks").iterdir()} == {(20, 30)}


def test_names_of_maximum_length_work(model: Path, tmp_path: Path) -> None:
    long = "ä" * 122 + "x"  # 245 bytes, 249 with its suffix
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / f"{long}.tif", noise(2, 20, 30), photometric="minisblack")
    assert job(model, tmp_path / "in", tmp_path / "out", "--output.confidence") == FINISHED
    found = [path.stem for path in (tmp_path / "out" / "masks").iterdir()]
    assert len(set(found)) == 2
    assert long in found


def claiming_png(side: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(100))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_one_bad_file_does_not_end_the_job(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    save(folder / "good.png", noise(20, 30))
    (folder / "huge.png").write_bytes(claiming_png(60_000))
    (folder / "huger.png").write_bytes(claiming_png(2_000_000_000))
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "cut.tif").write_bytes(b"II*\0\x08\0\0\0")
    (folder / "broken.png").symlink_to("nowhere.png")
    tifffile.imwrite(folder / "wide.tif", noise(4, 4), metadata=None)
    with tifffile.TiffFile(folder / "wide.tif", mode="r+b") as file:
        file.pages[0].tags[256].overwrite(2_000_000_000)
    save(folder / "turned.jpg", noise(20, 30), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    assert job(model, folder, tmp_path / "out") == INCOMPLETE
    shown = capfd.readouterr().err
    assert "Traceback" not in shown
    assert {path.stem for path in (tmp_path / "out" / "masks").iterdir()} == {"good", "turned"}
    for name in ("huge.png", "huger.png", "empty.jpg", "cut.tif", "broken.png", "wide.tif"):
        assert name in (tmp_path / "out" / "failures.json").read_text()
