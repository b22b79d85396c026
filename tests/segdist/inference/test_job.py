"""`segdist infer` in one process: outputs, reuse, refusals and reports."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from jobs import infer
from jobs.entry import run_job
from segdist import predict
from segdist.core.errors import UserError
from segdist.core.exit_codes import FINISHED, INCOMPLETE, USAGE
from segdist.inference.finished_log import FinishedLog
from segdist.inference.gpu_transfer import ReadAhead
from segdist.inference.tiler import TileModel
from segdist.model.metrics import confusion_matrix, mean_iou
from segdist.model.model_file import load_model
from tests.support.inference_parts import (
    CLASSES,
    checksums,
    labels,
    to_former_layout,
    write_images,
    write_model,
    write_truth,
)

FEW = {"odd": (61, 83), "sub/small": (13, 9)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("run"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    return write_images(tmp_path / "images", FEW)


def arguments(model: Path, images: Path, out: Path, *more: str) -> list[str]:
    return ["-m", str(model), "-i", str(images), "-o", str(out), "--quiet", "--output.figures", "0", *more]


def job(model: Path, images: Path, out: Path, *more: str) -> int:
    return run_job(infer.main, arguments(model, images, out, *more))


def test_masks_match_predict(model: Path, images: Path, tmp_path: Path) -> None:
    assert job(model, images, tmp_path / "out") == FINISHED
    for name in FEW:
        expected = predict(model, images / f"{name}.png", device="cpu").argmax(axis=0)
        mask = Image.open(tmp_path / "out" / "masks" / f"{name}.png")
        assert (np.asarray(mask) == expected).all()
        assert mask.getpalette()[3:6] == list(CLASSES[1].color)  # type: ignore[index]
        assert (tmp_path / "out" / "previews" / f"{name}.png").exists()


def test_pages_of_a_tiff_are_images(model: Path, tmp_path: Path) -> None:
    pages = np.random.default_rng(0).integers(0, 256, (3, 40, 50), dtype=np.uint8)
    stack = tmp_path / "stack.tif"
    tifffile.imwrite(stack, pages, photometric="minisblack")
    assert job(model, stack, tmp_path / "out", "--images", str(stack), f"{stack}#page=2") == FINISHED
    for name, page in (("stack", 0), ("stack-page2", 2)):
        expected = predict(model, pages[page], device="cpu").argmax(axis=0)
        assert (labels(tmp_path / "out" / "masks" / f"{name}.png") == expected).all()


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        ("float32", "npy"),
        ("float16", "npy"),
        ("uint16", "npy"),
        ("uint8", "npy"),
        ("uint16", "tiff"),
        ("float32", "zarr"),
    ],
)
def test_probabilities_are_written_in_every_type_and_format(
    model: Path, images: Path, tmp_path: Path, kind: str, suffix: str
) -> None:
    options = ["--output.probabilities", kind, "--output.probability-format", suffix]
    assert job(model, images / "odd.png", tmp_path / "out", *options) == FINISHED
    exact = predict(model, images / "odd.png", device="cpu")
    if suffix == "npy":
        stored = np.load(tmp_path / "out/probabilities/odd.npy")
    elif suffix == "tiff":
        stored = tifffile.imread(tmp_path / "out/probabilities/odd.tif")
    else:
        zarr = pytest.importorskip("zarr")
        array = zarr.open(str(tmp_path / "out/probabilities/odd.zarr"), mode="r")
        assert array.attrs["classes"] == [info.name for info in CLASSES]
        stored = array[:]
    assert stored.dtype == np.dtype(kind)
    if kind == "float32":
        assert (stored == exact).all()
    elif kind == "float16":
        assert (stored == exact.astype(np.float16)).all()
    else:
        assert (stored == np.round(exact * np.float32(np.iinfo(kind).max))).all()


@pytest.mark.parametrize("kind", ["tiff", "zarr"])
def test_masks_can_be_tiff_and_zarr(model: Path, images: Path, tmp_path: Path, kind: str) -> None:
    job(model, images / "odd.png", tmp_path / "png")
    assert job(model, images / "odd.png", tmp_path / "out", "--output.mask-format", kind) == FINISHED
    if kind == "tiff":
        stored = tifffile.imread(tmp_path / "out/masks/odd.tif")
    else:
        stored = pytest.importorskip("zarr").open(str(tmp_path / "out/masks/odd.zarr"), mode="r")[:]
    assert (stored == labels(tmp_path / "png/masks/odd.png")).all()


def test_confidence_and_entropy_maps_are_written(model: Path, images: Path, tmp_path: Path) -> None:
    assert job(model, images / "odd.png", tmp_path / "out", "--output.confidence", "--output.entropy") == FINISHED
    exact = predict(model, images / "odd.png", device="cpu").astype(np.float64)
    entropy = -(exact * np.log(np.maximum(exact, 1e-300))).sum(axis=0) / np.log(len(CLASSES))
    for name, expected in (("confidence", exact.max(axis=0)), ("entropy", entropy)):
        stored = np.asarray(Image.open(tmp_path / "out" / name / "odd.png"))
        assert np.abs(stored - expected * 255).max() <= 0.51


def test_a_region_has_exactly_the_pixels_of_the_full_run(model: Path, images: Path, tmp_path: Path) -> None:
    options = ["--output.probabilities", "float32"]
    job(model, images / "odd.png", tmp_path / "full", *options)
    assert job(model, images / "odd.png", tmp_path / "part", *options, "--roi", "17", "29", "31", "40") == FINISHED
    window = (slice(17, 48), slice(29, 69))
    assert (labels(tmp_path / "part/masks/odd.png") == labels(tmp_path / "full/masks/odd.png")[window]).all()
    full = np.load(tmp_path / "full/probabilities/odd.npy")
    assert (np.load(tmp_path / "part/probabilities/odd.npy") == full[:, window[0], window[1]]).all()


def test_scores_match_the_masks_and_name_both_means(model: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "truth").mkdir()
    truths = {"odd": (61, 83), "small": (13, 9)}
    truth = write_truth(tmp_path / "truth", truths)
    (images / "sub/small.png").rename(images / "small.png")
    assert job(model, images, tmp_path / "out", "--masks.folder", str(truth)) == FINISHED
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    matrices = {
        name: confusion_matrix(
            torch.from_numpy(labels(truth / f"{name}.png").copy()),
            torch.from_numpy(labels(tmp_path / f"out/masks/{name}.png").copy()),
            3,
        )
        for name in truths
    }
    assert scores["confusion_matrix"] == sum(matrices.values()).tolist()  # type: ignore[union-attr]
    assert scores["mean_iou_pixels"] == mean_iou(sum(matrices.values()))  # type: ignore[arg-type]
    own = {name: mean_iou(matrix) for name, matrix in matrices.items()}
    assert scores["mean_iou_over_images"] == pytest.approx(sum(own.values()) / 2, abs=1e-12)
    assert {image["name"]: image["mean_iou"] for image in scores["images"]} == own
    assert scores["worst"] == sorted(own, key=lambda name: own[name])
    assert scores["classes"] == ["ground", "line", "spot"]


def test_the_last_lines_give_scores_and_paths(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_truth(tmp_path / "truth", {"odd": (61, 83)})
    job(model, images / "odd.png", tmp_path / "out", "--masks.folder", str(tmp_path / "truth"))
    printed = capsys.readouterr().out
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert f"mean IoU over images: {scores['mean_iou_over_images']:.4f}" in printed.splitlines()
    assert f"{tmp_path}/out/masks/" in printed
    assert "spot" in printed


def test_figures_show_all_classes(model: Path, images: Path, tmp_path: Path) -> None:
    options = ["-m", str(model), "-i", str(images), "-o", str(tmp_path / "out"), "--quiet", "--output.figures", "1"]
    assert run_job(infer.main, options) == FINISHED
    drawn = list((tmp_path / "out/figures").rglob("*.png"))
    assert [path.name for path in drawn] == ["odd.png"]
    assert Image.open(drawn[0]).size[0] > 1000  # five panels in a row
    assert not (tmp_path / "out/probabilities").exists()  # computed for the figure, not requested


def test_running_again_reuses_finished_work(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job(model, images, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/masks").rglob("*.png")}
    capsys.readouterr()
    assert job(model, images, tmp_path / "out") == FINISHED
    assert "2 of them were finished before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_changed_image_or_a_lost_output_is_recomputed(model: Path, images: Path, tmp_path: Path) -> None:
    job(model, images, tmp_path / "out")
    first = checksums(tmp_path / "out")
    write_images(images, {"odd": (50, 50)})
    (tmp_path / "out/masks/sub/small.png").unlink()
    assert job(model, images, tmp_path / "out") == FINISHED
    again = checksums(tmp_path / "out")
    assert again["masks/sub/small.png"] == first["masks/sub/small.png"]
    assert labels(tmp_path / "out/masks/odd.png").shape == (50, 50)


def test_unfinished_files_of_a_killed_job_are_removed(model: Path, images: Path, tmp_path: Path) -> None:
    left = [tmp_path / "out/masks" / name for name in (".odd.png.0123abcd.tmp", ".other.png.0123abcd.tmp")]
    left[0].parent.mkdir(parents=True)
    for file in left:
        file.write_bytes(b"half")
    with left[1].open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as a running job does
        assert job(model, images, tmp_path / "out") == FINISHED
    assert [file.exists() for file in left] == [False, True]


def test_other_settings_in_the_same_folder_are_refused_by_name(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job(model, images, tmp_path / "out")
    assert job(model, images, tmp_path / "out", "--overlap", "0.25") == USAGE
    message = capsys.readouterr().err
    assert "overlap: was 0.5, now 0.25" in message
    assert "--overwrite" in message
    assert job(model, images, tmp_path / "out", "--overlap", "0.25", "--overwrite") == FINISHED


def test_images_from_another_root_are_refused_and_new_ones_from_the_same_root_added(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_images(tmp_path / "other" / "images", {"odd": (40, 40)})
    assert job(model, images, tmp_path / "out") == FINISHED
    before = checksums(tmp_path / "out")
    assert job(model, other, tmp_path / "out") == USAGE
    assert job(model, other, tmp_path / "out", "--dry-run") == USAGE
    message = capsys.readouterr().err
    assert f"images: was {images}, now {other}" in message
    assert "another --out" in message
    assert checksums(tmp_path / "out") == before
    write_images(images, {"new": (30, 30)})
    assert job(model, images / "new.png", tmp_path / "out") == FINISHED  # a subset of the list, in the same root
    assert job(model, Path(os.path.relpath(images)), tmp_path / "out") == FINISHED
    assert "3 of 3 images segmented (3 of them were finished before)" in capsys.readouterr().out
    assert job(model, other, tmp_path / "out", "--overwrite") == FINISHED
    assert [path.name for path in (tmp_path / "out/masks").rglob("*.png")] == ["odd.png"]


def test_results_are_reused_after_they_or_their_images_are_moved(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_truth(tmp_path / "truth" / "sub", {"small": (13, 9)})
    write_truth(tmp_path / "truth", {"odd": (61, 83)})
    (tmp_path / "here").mkdir()
    for name in ("images", "truth"):
        (tmp_path / name).rename(tmp_path / "here" / name)
    truth = ["--masks.folder", str(tmp_path / "here/truth")]
    assert job(model, tmp_path / "here/images", tmp_path / "here/out", *truth) == FINISHED
    (tmp_path / "here").rename(tmp_path / "there")
    (tmp_path / "there/out").rename(tmp_path / "out")  # the mask folder need not be moved
    truth = ["--masks.folder", str(tmp_path / "there/truth")]
    assert job(model, tmp_path / "there/images", tmp_path / "out", *truth) == FINISHED
    assert "2 of them were finished before" in capsys.readouterr().out
    other = write_images(tmp_path / "other", {"odd": (40, 40)})
    (tmp_path / "there/images").rename(tmp_path / "gone")
    assert job(model, other, tmp_path / "out") == USAGE
    assert f"now {other}" in capsys.readouterr().err


def test_an_image_that_later_needs_its_suffix_leaves_no_file_under_its_short_name(model: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", {"a": (9, 9)})
    assert job(model, images, tmp_path / "out") == FINISHED
    Image.open(images / "a.png").save(images / "a.tif")
    assert job(model, images, tmp_path / "out") == FINISHED
    assert sorted(path.name for path in (tmp_path / "out/masks").iterdir()) == ["a.png.png", "a.tif.png"]
    assert set(FinishedLog(tmp_path / "out/state").read()) == {"a.png", "a.tif"}


def test_results_from_before_format_versions_are_reused(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job(model, images, tmp_path / "out") == FINISHED
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/masks").rglob("*.png")}
    to_former_layout(tmp_path / "out", 0)
    other = write_images(tmp_path / "other", {"odd": (40, 40)})
    assert job(model, other, tmp_path / "out") == USAGE
    assert f"was {images}" in capsys.readouterr().err
    assert job(model, images, tmp_path / "out") == FINISHED
    assert {path: path.stat().st_mtime_ns for path in before} == before
    settings = json.loads((tmp_path / "out/state/settings.json").read_text())
    assert settings["root"] == str(images)  # recorded from now on
    settings["format_version"] = 99
    (tmp_path / "out/state/settings.json").write_text(json.dumps(settings))
    capsys.readouterr()
    assert job(model, images, tmp_path / "out") == USAGE
    assert "settings.json: format version 99, written by a newer segdist" in capsys.readouterr().err


def test_a_folder_from_before_models_were_prepared_gets_the_bits_of_its_version(
    model: Path, images: Path, tmp_path: Path
) -> None:
    options = ("--output.probabilities", "float32", "--device", "cpu")
    assert job(model, images / "odd.png", tmp_path / "old", *options) == FINISHED
    file = tmp_path / "old/state/settings.json"
    settings = json.loads(file.read_text())
    assert settings.pop("prepared") is True
    file.write_text(json.dumps(settings))
    write_images(images, {"new": (40, 50)})
    assert job(model, images, tmp_path / "old", *options) == FINISHED
    assert job(model, images, tmp_path / "fresh", *options) == FINISHED
    old, fresh = (np.load(tmp_path / out / "probabilities/new.npy") for out in ("old", "fresh"))
    plain, card = load_model(model)
    tiles: Any = {"tile": card.patch, "mean": card.mean, "std": card.std, "num_classes": len(card.classes)}
    np.testing.assert_array_equal(old, predict(plain, images / "new.png", device="cpu", **tiles))
    assert not np.array_equal(old, fresh)
    np.testing.assert_allclose(old, fresh, atol=1e-5)
    assert json.loads(file.read_text())["prepared"] is False


def test_the_number_of_threads_is_fixed_at_the_first_start(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job(model, images / "odd.png", tmp_path / "out", "--threads", "2") == FINISHED
    write_images(images, {"new": (30, 30)})
    threads = []
    original = TileModel.probabilities

    def counted(self: TileModel, tiles: torch.Tensor) -> torch.Tensor:
        threads.append(torch.get_num_threads())
        return original(self, tiles)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TileModel, "probabilities", counted)
        patched.setenv("OMP_NUM_THREADS", "1")
        assert job(model, images / "new.png", tmp_path / "out") == FINISHED
    assert set(threads) == {2}
    assert "2 threads per rank, as when" in capsys.readouterr().err
    assert job(model, images, tmp_path / "out", "--threads", "1") == USAGE
    assert "threads: was 2, now 1" in capsys.readouterr().err


@pytest.mark.parametrize("beside", ["file", "in a file"])
def test_an_output_folder_that_is_a_file_is_refused(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], beside: str
) -> None:
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / ("" if beside == "file" else "out")
    assert job(model, images, out) == USAGE
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_damaged_images_are_listed_and_the_others_segmented(model: Path, images: Path, tmp_path: Path) -> None:
    content = (images / "odd.png").read_bytes()
    (images / "broken.png").write_bytes(content[:2000])
    (images / "text.png").write_text("no image")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(images / "color.png")
    assert job(model, images, tmp_path / "out") == INCOMPLETE
    failures = json.loads((tmp_path / "out/failures.json").read_text())["failures"]
    assert {Path(failure["image"]).name for failure in failures} == {"broken.png", "text.png", "color.png"}
    assert all(failure["image"] in failure["error"] for failure in failures)
    assert (tmp_path / "out/masks/odd.png").exists()
    assert not (tmp_path / "out/masks/broken.png").exists()
    (images / "broken.png").write_bytes(content)
    for name in ("text.png", "color.png"):
        (images / name).unlink()
    assert job(model, images, tmp_path / "out") == FINISHED
    assert not (tmp_path / "out/failures.json").exists()


def test_strict_stops_at_a_damaged_image(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (images / "odd.png").read_bytes()
    (images / "odd.png").write_bytes(content[:2000])
    assert job(model, images, tmp_path / "out", "--strict") == USAGE
    assert "odd.png" in capsys.readouterr().err


def test_a_model_that_cannot_run_stops_the_job_instead_of_failing_every_image(
    model: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class NoCompiler(RuntimeError):
        __module__ = "torch._inductor.exc"

    class Compiled(torch.nn.Module):
        def forward(self, tiles: torch.Tensor) -> torch.Tensor:
            raise NoCompiler("no working C++ compiler\nand much more")

    monkeypatch.setattr(torch, "compile", lambda model: Compiled())
    assert job(model, images, tmp_path / "out", "--compile") == USAGE
    assert "--compile failed: no working C++ compiler; omit it" in capsys.readouterr().err
    assert not (tmp_path / "out/failures.json").exists()


def test_a_mask_of_another_size_fails_its_image_only(model: Path, images: Path, tmp_path: Path) -> None:
    write_truth(tmp_path / "truth", {"odd": (60, 83)})
    options = ["--masks.folder", str(tmp_path / "truth")]
    assert job(model, images / "odd.png", tmp_path / "out", *options) == INCOMPLETE
    assert "60 x 83" in json.loads((tmp_path / "out/failures.json").read_text())["failures"][0]["error"]


def test_array_tasks_are_merged_by_a_final_run(model: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", {f"{i}": (20 + i, 33) for i in range(5)})
    truth = write_truth(tmp_path / "truth", {f"{i}": (20 + i, 33) for i in range(5)})
    options = ["--masks.folder", str(truth)]
    job(model, images, tmp_path / "alone", *options)
    for task in range(3):
        assert job(model, images, tmp_path / "array", *options, "--task", f"{task}/3") == FINISHED
    assert job(model, images, tmp_path / "array", *options) == FINISHED
    alone, array = json.loads((tmp_path / "alone/scores.json").read_text()), None
    array = json.loads((tmp_path / "array/scores.json").read_text())
    assert array == alone


def test_dry_run_writes_nothing(model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert job(model, images, tmp_path / "out", "--dry-run") == FINISHED
    assert not (tmp_path / "out").exists()
    printed = capsys.readouterr().out
    assert "2 images" in printed
    assert "tile = 16" in printed
    assert "rank 0: 2 images, 71 tiles" in printed


def test_images_can_come_from_globs_csv_files_and_share_a_stem(model: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", {"a": (9, 9), "b.5um": (8, 8)})
    Image.open(images / "a.png").save(images / "a.tif")
    job(model, Path(f"{images}/*.*"), tmp_path / "glob")
    assert {path.name for path in (tmp_path / "glob/masks").iterdir()} == {"a.png.png", "a.tif.png", "b.5um.png"}
    (images / "list.csv").write_text("image,mask\na.png,a.png\n")
    options = ["--masks.classes", "ground=0-80", "line=81-160", "spot=161-255"]
    assert job(model, images / "list.csv", tmp_path / "csv", *options) == FINISHED
    assert json.loads((tmp_path / "csv/scores.json").read_text())["images"][0]["name"] == "a"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--roi", "0", "0", "900", "5"], "extends beyond"),
        (["--overlap", "1.5"], "--overlap"),
        (["--task", "3/3"], "--task"),
        (["--data", "synthetic"], "--data"),
    ],
)
def test_impossible_settings_are_refused_by_name(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], named: str
) -> None:
    assert job(model, images / "odd.png", tmp_path / "out", "--strict", *options) == USAGE
    assert named in capsys.readouterr().err


def test_an_output_folder_among_the_inputs_is_refused(model: Path, images: Path) -> None:
    with pytest.raises(UserError, match="--out"):
        infer.main(arguments(model, images, images / "out"))


def test_parts_resume_after_an_exception(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from segdist.inference import parts, segment

    images = write_images(tmp_path / "images", {"tall": (117, 41)})
    options = ["--output.probabilities", "float32", "--output.mask-format", "tiff"]
    job(model, images, tmp_path / "whole", *options)
    monkeypatch.setattr(segment, "MEMORY_LIMIT", 0)
    monkeypatch.setattr(parts, "SAFE_INTERVAL", 0.0)
    original = parts.PartWriter.append
    computed: list[int] = []

    def stop_now_and_then(self: parts.PartWriter, tile_row: int, *rest: object) -> None:
        original(self, tile_row, *rest)  # type: ignore[arg-type]
        computed.append(tile_row)
        if len(computed) % 4 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(parts.PartWriter, "append", stop_now_and_then)
    codes = [job(model, images, tmp_path / "parts", *options) for _ in range(5)]
    assert codes[0] == 130
    assert codes[-1] == FINISHED
    assert len(computed) == len(set(computed)) == 14  # no tile row was computed twice
    assert checksums(tmp_path / "parts") == checksums(tmp_path / "whole")
    assert not list((tmp_path / "parts/state/parts").rglob("*.raw"))


def test_rows_of_a_changed_image_are_recomputed(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from segdist.inference import parts, segment

    images = write_images(tmp_path / "images", {"tall": (117, 41)})
    monkeypatch.setattr(segment, "MEMORY_LIMIT", 0)
    monkeypatch.setattr(parts, "SAFE_INTERVAL", 0.0)
    original = parts.PartWriter.append

    def stop_at_the_fifth(self: parts.PartWriter, tile_row: int, *rest: object) -> None:
        original(self, tile_row, *rest)  # type: ignore[arg-type]
        if tile_row == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(parts.PartWriter, "append", stop_at_the_fifth)
        assert job(model, images, tmp_path / "out") == 130
    Image.fromarray(np.asarray(Image.open(images / "tall.png"))[::-1].copy()).save(images / "tall.png")
    assert job(model, images, tmp_path / "out") == FINISHED
    expected = predict(model, images / "tall.png", device="cpu").argmax(axis=0)
    assert (labels(tmp_path / "out/masks/tall.png") == expected).all()


@pytest.mark.gpu
def test_a_job_on_a_gpu_reads_ahead_and_writes_every_row(model: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", {"tall": (331, 47)})
    options = ["--output.probabilities", "float32"]
    assert job(model, images, tmp_path / "cpu", *options, "--device", "cpu") == FINISHED
    assert job(model, images, tmp_path / "gpu", *options, "--device", "cuda", "--precision", "fp32") == FINISHED
    found = [np.load(tmp_path / device / "probabilities/tall.npy") for device in ("cpu", "gpu")]
    assert np.abs(found[0] - found[1]).max() < 1e-3


def test_read_ahead_returns_the_requested_rows() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 8, 1), dtype=np.uint8)
    with ReadAhead(lambda top, bottom, left, right: pixels[top:bottom, left:right], 50) as read:
        for top, bottom in ((0, 16), (16, 24), (24, 32), (10, 20), (20, 30), (40, 50)):
            assert (read(top, bottom, 2, 7) == pixels[top:bottom, 2:7]).all()


def test_read_ahead_raises_reading_errors() -> None:
    def damaged(top: int, bottom: int, left: int, right: int) -> np.ndarray:
        if top:
            raise UserError("damaged")
        return np.zeros((bottom, right, 1), np.uint8)

    with ReadAhead(damaged, 50) as read:
        read(0, 10, 0, 5)
        with pytest.raises(UserError, match="damaged"):
            read(10, 20, 0, 5)
