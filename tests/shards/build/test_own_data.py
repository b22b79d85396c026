"""Shard sets from user files: every kind of file, and refusals that name the files and the fix."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from jobs.make_shards import main as make_shards_command
from segdist.core.errors import UserError
from shards.build.build import make_shards
from shards.build.config import ImagesConfig, PatchesConfig, SplitConfig
from shards.build.plan import plan_lines
from shards.build.recipe import digest_of_files
from shards.build.work import find_work
from shards.images.config import MasksConfig
from shards.images.opening import match_channels, open_image
from shards.manifest import read_manifest
from shards.read.batches import TrainBatches
from shards.read.order import SampleOrder
from shards.read.reader import ShardSet
from tests.support.sets import add, build_own, labels, noise, own_config

SIZE = 16  # patch side in `own_config`


def some_images(folder: Path, count: int = 6) -> None:
    for number in range(count):
        add(folder, f"im {number}.v1.png", noise(number), labels())


def assert_patches_are_windows(folder: Path) -> None:
    """Every training patch is a window of its source, as read by the public readers."""
    shard_set = ShardSet(folder / "data" / "own")
    manifest = shard_set.manifest
    order = SampleOrder(shard_set.sizes("train"), 1, 0, flips=False)
    for batch in TrainBatches(shard_set, order, prefetch=0).batches(0):
        entry = shard_set.index("train", int(batch.samples.shard[0]))[int(batch.samples.record[0])]
        path = manifest.sources["train"][entry["source"]].image
        y, x = int(entry["y"]), int(entry["x"])
        with open_image(path) as image:
            window = match_channels(image.read(y, y + SIZE, x, x + SIZE), manifest.channels, path)
        assert np.array_equal(batch.images[0].numpy(), np.moveaxis(window, -1, 0))


def test_names_may_have_dots_and_spaces_and_sizes_may_differ(tmp_path: Path) -> None:
    some_images(tmp_path)
    add(tmp_path, "big one.0.5um.t1.png", noise(50, 90, 70), labels(90, 70))
    manifest = build_own(tmp_path)
    assert manifest.samples("train") + manifest.samples("val") == 35
    assert [info.name for info in manifest.classes] == ["background", "cell"]
    assert_patches_are_windows(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_format_works_in_gray_and_rgb(tmp_path: Path, suffix: str, channels: int) -> None:
    for number in range(3):
        add(tmp_path, f"{number}{suffix}", noise(number, channels=channels), labels())
    assert build_own(tmp_path).channels == channels
    assert_patches_are_windows(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_images_keep_their_values(tmp_path: Path, suffix: str) -> None:
    for number in range(3):
        add(tmp_path, f"{number}{suffix}", noise(number, dtype="uint16"), labels())
    manifest = build_own(tmp_path)
    assert manifest.dtype == "uint16"
    assert 25_000 < manifest.mean[0] < 40_000
    assert_patches_are_windows(tmp_path)


def test_tiff_images_may_have_many_channels(tmp_path: Path) -> None:
    for number in range(3):
        add(tmp_path, f"{number}.tif", noise(number, channels=5), labels(), f"{number}.tif")
    assert build_own(tmp_path).channels == 5
    assert_patches_are_windows(tmp_path)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_transparency_is_dropped_and_palettes_are_looked_up(tmp_path: Path, mode: str) -> None:
    for number in range(3):
        add(tmp_path, f"{number}.png", noise(number), labels())
        path = tmp_path / "images" / f"{number}.png"
        Image.open(path).convert(mode).save(path)
    manifest = build_own(tmp_path)
    assert manifest.channels == 1  # color files without color
    assert_patches_are_windows(tmp_path)


def test_every_page_of_a_multi_page_tiff_is_an_image(tmp_path: Path) -> None:
    pages = np.stack([noise(number) for number in range(4)])
    for kind, stack in (("images", pages), ("masks", np.stack([labels()] * 4))):
        (tmp_path / kind).mkdir()
        tifffile.imwrite(tmp_path / kind / "stack.tif", stack, photometric="minisblack")
    manifest = build_own(tmp_path, split=SplitConfig(validation=0))
    assert len(manifest.sources["train"]) == 4
    shard_set = ShardSet(tmp_path / "data" / "own")
    for shard in range(4):
        image, _ = shard_set.read("train", np.array([shard]), np.array([0]))
        entry = shard_set.index("train", shard)[0]
        y, x = int(entry["y"]), int(entry["x"])
        assert np.array_equal(image[0, 0], pages[entry["source"], y : y + SIZE, x : x + SIZE])


def test_images_smaller_than_a_patch_are_reflected(tmp_path: Path) -> None:
    for number in range(3):
        add(tmp_path, f"{number}.png", noise(number, 10, 9), labels(10, 9))
    build_own(tmp_path)
    shard_set = ShardSet(tmp_path / "data" / "own")
    image, mask = shard_set.read("train", np.array([0]), np.array([0]))
    assert np.array_equal(image[0, 0, :, 9:], image[0, 0, :, 1:8][:, ::-1])
    assert np.array_equal(mask[0, 10:], mask[0, 3:9][::-1])


def test_masks_with_a_name_suffix_may_be_in_the_image_folder(tmp_path: Path) -> None:
    for number in range(3):
        add(tmp_path, f"{number}.png", noise(number), labels(), f"../images/{number}_mask.png")
    manifest = build_own(
        tmp_path, masks=MasksConfig(name="{stem}_mask", classes=("background=0", "cell=255")), split=SplitConfig()
    )
    assert sum(len(pairs) for pairs in manifest.sources.values()) == 3


def test_a_csv_file_can_list_pairs_and_splits(tmp_path: Path) -> None:
    some_images(tmp_path, 5)
    rows = [
        f"images/im {n}.v1.png,masks/im {n}.v1.png,{split}"
        for n, split in enumerate(["train"] * 2 + ["val"] * 2 + ["test"])
    ]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,mask,split", *rows]))
    manifest = build_own(
        tmp_path,
        images=ImagesConfig(csv=tmp_path / "pairs.csv"),
        masks=MasksConfig(classes=("background=0", "cell=255")),
    )
    assert {split: len(pairs) for split, pairs in manifest.sources.items()} == {"train": 2, "val": 2, "test": 1}


def test_training_images_named_in_a_csv_file_leave_some_for_validation(tmp_path: Path) -> None:
    some_images(tmp_path, 7)
    rows = [f"images/im {n}.v1.png,masks/im {n}.v1.png,{'test' if n == 3 else 'train'}" for n in range(7)]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,mask,split", *rows]))
    manifest = build_own(
        tmp_path,
        images=ImagesConfig(csv=tmp_path / "pairs.csv"),
        masks=MasksConfig(classes=("background=0", "cell=255")),
        split=SplitConfig(),
    )
    assert {split: len(pairs) for split, pairs in manifest.sources.items()} == {"train": 5, "val": 1, "test": 1}


def test_splits_can_be_lists_patterns_and_groups(tmp_path: Path) -> None:
    for animal in range(4):
        for number in range(3):
            add(tmp_path, f"rat{animal}_{number}.png", noise(10 * animal + number), labels())
    (tmp_path / "val.txt").write_text("rat1_0\nrat1_1.png\n\nrat1_2\n")
    manifest = build_own(
        tmp_path,
        split=SplitConfig(group=r"rat\d", test_images=("rat0*",), validation_list=tmp_path / "val.txt"),
    )
    names = {split: {Path(pair.image).name[:4] for pair in pairs} for split, pairs in manifest.sources.items()}
    assert names == {"train": {"rat2", "rat3"}, "val": {"rat1"}, "test": {"rat0"}}


def test_drawn_splits_keep_groups_together(tmp_path: Path) -> None:
    for animal in range(6):
        for number in range(3):
            add(tmp_path, f"rat{animal}_{number}.png", noise(10 * animal + number), labels())
    manifest = build_own(tmp_path, split=SplitConfig(validation=0.2, test=0.3, group=r"rat\d"))
    names = {split: {Path(pair.image).name[:4] for pair in pairs} for split, pairs in manifest.sources.items()}
    assert [len(names[split]) for split in ("train", "val", "test")] == [3, 1, 2]
    assert [len(manifest.sources[split]) for split in ("train", "val", "test")] == [9, 3, 6]


@pytest.mark.slow
def test_processes_and_tasks_give_the_same_bytes(tmp_path: Path) -> None:
    some_images(tmp_path, 12)
    results = []
    for name, changes in (("a", {}), ("b", {"processes": 2})):
        build_own(tmp_path, name=name, **changes)
        results.append({path.name: path.read_bytes() for path in (tmp_path / "data" / name).glob("*.*")})
    for task in ("0/2", "1/2"):
        make_shards(own_config(tmp_path, name="c", task=task), quiet=True)
    make_shards(own_config(tmp_path, name="c", finish=True), quiet=True)
    results.append({path.name: path.read_bytes() for path in (tmp_path / "data" / "c").glob("*.*")})
    assert results[0] == results[1] == results[2]


def refused(folder: Path, **changes: object) -> str:
    with pytest.raises(UserError) as error:
        build_own(folder, **changes)
    return str(error.value)


def test_an_image_without_a_mask_is_refused_with_the_nearest_rule(tmp_path: Path) -> None:
    some_images(tmp_path)
    add(tmp_path, "lost.png", noise(9), labels(), "lost_gt.png")
    message = refused(tmp_path)
    assert "--masks.name '{stem}': pairs 6 of 7 images with one of the 7 masks each" in message
    assert "1 images without a mask (lost.png), 1 masks without an image (lost_gt.png)" in message
    assert "'{stem}_gt'" not in message  # which would pair one image
    assert "--images.csv" in message
    assert "--images.unlabelled skip" in message


def test_sizes_that_differ_are_refused_with_both_files(tmp_path: Path) -> None:
    some_images(tmp_path)
    add(tmp_path, "odd.png", noise(9), labels(40, 31))
    message = refused(tmp_path)
    assert "odd.png is 40 x 30" in message
    assert "masks/odd.png is 40 x 31" in message


def test_unknown_labels_in_all_files_are_refused_at_once_and_nothing_is_left(tmp_path: Path) -> None:
    some_images(tmp_path)
    for name in ("x", "y"):
        mask = labels()
        mask[:, 15] = 130  # a column in every patch
        add(tmp_path, f"{name}.png", noise(ord(name)), mask)
    message = refused(tmp_path)
    assert "masks/x.png: 130 (40 px)" in message
    assert "masks/y.png: 130 (40 px)" in message
    assert not (tmp_path / "data" / "own").exists()
    assert build_own(tmp_path, masks=replace(own_config(tmp_path).masks, unknown="ignore")).ignored_pixels


def test_a_dry_run_reads_the_masks_and_counts_across_all_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    some_images(tmp_path, 30)
    for number in (3, 4, 20):
        mask = labels()
        mask[0, : number // 2] = 77
        add(tmp_path, f"im {number}.v1.png", noise(number), mask)
    Image.fromarray(np.dstack([labels(), labels() * 0, labels()])).save(tmp_path / "masks" / "im 7.v1.png")
    monkeypatch.chdir(tmp_path)
    settings = ["--images.folder", "images", "--masks.folder", "masks", "--masks.classes", "a=0", "b=255"]
    with pytest.raises(UserError) as error:
        make_shards_command(["-f", "s", "--dry-run", "--processes", "2", *settings])
    message = str(error.value)
    assert "1 masks can't be used" in message
    assert "im 7.v1.png: the mask is colored" in message
    assert "total of 3 files: 77 (13 px)" in message
    assert "im 20.v1.png: 77 (10 px)" in message
    assert not (tmp_path / "data").exists()
    (tmp_path / "masks" / "im 7.v1.png").write_bytes((tmp_path / "masks" / "im 1.v1.png").read_bytes())
    assert make_shards_command(["-f", "s", "--dry-run", *settings, "--masks.ignore", "77"]) == 0
    assert "images: 23 train, 3 val, 4 test" in capsys.readouterr().out


def test_mixed_channels_are_refused_with_the_fix(tmp_path: Path) -> None:
    some_images(tmp_path)
    add(tmp_path, "bands.tif", noise(9, channels=5), labels())
    message = refused(tmp_path)
    assert "bands.tif" in message
    assert "--patches.channels 3" in message


def test_gray_files_among_color_files_become_rgb(tmp_path: Path) -> None:
    some_images(tmp_path)
    add(tmp_path, "color.png", noise(9, channels=3), labels())
    assert build_own(tmp_path).channels == 3


def test_mixed_bit_depths_are_refused(tmp_path: Path) -> None:
    some_images(tmp_path)
    add(tmp_path, "deep.png", noise(9, dtype="uint16"), labels())
    assert "1 with uint16" in refused(tmp_path)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    some_images(tmp_path)
    path = tmp_path / "images" / "im 2.v1.png"
    path.write_bytes(path.read_bytes()[:200])
    assert "im 2.v1.png" in refused(tmp_path)


def test_an_image_in_two_splits_is_refused(tmp_path: Path) -> None:
    some_images(tmp_path)
    (tmp_path / "test.txt").write_text("im 0.v1\nim 1.v1\n")
    message = refused(tmp_path, split=SplitConfig(validation_images=("im 1*",), test_list=tmp_path / "test.txt"))
    assert "two splits" in message
    assert "im 1.v1.png: test by" in message
    assert "val by --split.validation-images 'im 1*'" in message


def test_the_same_picture_in_two_splits_is_found_in_any_format(tmp_path: Path) -> None:
    some_images(tmp_path)
    Image.open(tmp_path / "images" / "im 3.v1.png").convert("LA").save(tmp_path / "images" / "copy.png")
    Image.fromarray(labels()).save(tmp_path / "masks" / "copy.png")
    message = refused(tmp_path, split=SplitConfig(test_images=("copy*",)))
    assert "copy.png (test)" in message
    assert "im 3.v1.png" in message


def test_a_group_in_two_splits_is_refused(tmp_path: Path) -> None:
    some_images(tmp_path)
    chosen = SplitConfig(group="im", test_images=("im 1*",), validation_images=("im 2*",))
    assert "--split.group: the group 'im' is assigned to two splits" in refused(tmp_path, split=chosen)


@pytest.mark.parametrize("pattern", ["*", "*.jpg"])
def test_an_empty_folder_is_refused(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    assert "no image matches" in refused(tmp_path, images=ImagesConfig(folder=tmp_path / "images", pattern=pattern))


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    some_images(tmp_path)
    assert "no such folder" in refused(tmp_path, images=ImagesConfig(folder=tmp_path / "imagse"))


def test_names_that_differ_only_by_suffix_are_refused(tmp_path: Path) -> None:
    some_images(tmp_path)
    add(tmp_path, "im 0.v1.jpg", noise(0), None)
    assert "would share one mask" in refused(tmp_path)


def test_a_listed_name_without_an_image_is_refused(tmp_path: Path) -> None:
    some_images(tmp_path)
    (tmp_path / "test.txt").write_text("im 77\n")
    assert "'im 77' matches no image" in refused(tmp_path, split=SplitConfig(test_list=tmp_path / "test.txt"))


def test_a_csv_with_missing_files_is_refused_with_line_numbers(tmp_path: Path) -> None:
    some_images(tmp_path, 1)
    (tmp_path / "pairs.csv").write_text(
        "image,mask\nimages/im 0.v1.png,masks/im 0.v1.png\nimages/no.png,masks/no.png\n"
    )
    chosen = {"images": ImagesConfig(csv=tmp_path / "pairs.csv"), "masks": MasksConfig(classes=("a=0", "b=255"))}
    assert "line 3" in refused(tmp_path, **chosen)


def test_mismatched_pages_are_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images" / "s.tif", np.zeros((3, 20, 20), np.uint8), photometric="minisblack")
    add(tmp_path, "s.png", noise(0), labels())
    (tmp_path / "images" / "s.png").unlink()
    assert "has 3 pages and its mask" in refused(tmp_path)


def test_png_shards_of_many_channels_are_refused(tmp_path: Path) -> None:
    for number in range(3):
        add(tmp_path, f"{number}.tif", noise(number, channels=5), labels(), f"{number}.tif")
    assert "use --encoding npy" in refused(tmp_path, encoding="png")


def test_a_set_of_background_alone_is_refused_at_the_end(tmp_path: Path) -> None:
    for number in range(3):
        add(tmp_path, f"{number}.png", noise(number), labels() * 0)
    assert "no patch was kept" in refused(tmp_path, patches=PatchesConfig(size=SIZE, per_image=5))


def test_equivalent_paths_mean_the_same_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        add(tmp_path, f"{number}.png", noise(number), labels())
    make_shards(own_config(tmp_path), quiet=True)
    monkeypatch.chdir(tmp_path)
    relative = own_config(tmp_path, images=ImagesConfig(folder=Path("images")))
    make_shards(relative, quiet=True)
    (tmp_path / "masks").rename(tmp_path / "others")
    elsewhere = replace(relative, masks=replace(relative.masks, folder=Path("others")))
    with pytest.raises(UserError, match=r"masks\.folder: .* → 'others'"):
        make_shards(elsewhere, quiet=True)


def test_changed_files_mean_a_different_recipe(tmp_path: Path) -> None:
    some_images(tmp_path)
    build_own(tmp_path)
    add(tmp_path, "new.png", noise(99), labels())
    assert "source_files" in refused(tmp_path)


def change_in_place(path: Path) -> None:
    """Change one pixel of a BMP, which stores raw pixels, so that the file size stays the same."""
    size = path.stat().st_size
    with Image.open(path) as image:
        pixels = np.asarray(image).copy()
    pixels[0, 0] ^= 255
    Image.fromarray(pixels).save(path)
    assert path.stat().st_size == size


def bmp_images(folder: Path) -> None:
    for number in range(3):
        add(folder, f"{number}.bmp", noise(number), labels(), f"{number}.bmp")


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_files_changed_in_place_are_detected_and_named(tmp_path: Path, kind: str) -> None:
    bmp_images(tmp_path)
    build_own(tmp_path)
    change_in_place(tmp_path / kind / "1.bmp")
    message = refused(tmp_path)
    assert f"{kind}/1.bmp" in message
    assert f"{kind}/2.bmp" not in message
    assert "--overwrite" in message
    build_own(tmp_path, overwrite=True)
    assert build_own(tmp_path) == read_manifest(tmp_path / "data" / "own")


def test_files_that_were_only_touched_count_as_unchanged(tmp_path: Path) -> None:
    bmp_images(tmp_path)
    manifest = build_own(tmp_path)
    later = (tmp_path / "data" / "own" / "manifest.json").stat().st_mtime + 100
    os.utime(tmp_path / "masks" / "1.bmp", (later, later))
    assert build_own(tmp_path) == manifest


def test_a_shard_whose_sources_changed_is_rebuilt_in_an_unfinished_set(tmp_path: Path) -> None:
    bmp_images(tmp_path)
    make_shards(own_config(tmp_path, task="0/1"), quiet=True)
    change_in_place(tmp_path / "images" / "1.bmp")
    manifest = build_own(tmp_path)
    assert_patches_are_windows(tmp_path)
    assert build_own(tmp_path, name="anew").fingerprint == manifest.fingerprint


def test_a_zarr_image_is_identified_by_the_size_of_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "a.zarr" / "c").mkdir(parents=True)
    (tmp_path / "a.zarr" / "c" / "0").write_bytes(bytes(10))
    before = digest_of_files([("train", tmp_path / "a.zarr")])
    (tmp_path / "a.zarr" / "c" / "0").write_bytes(bytes(11))
    assert digest_of_files([("train", tmp_path / "a.zarr")]) != before


def test_the_plan_of_user_data_describes_it(tmp_path: Path) -> None:
    some_images(tmp_path)
    assert "5 train, 1 val, 0 test (1 channel, uint8)" in plan_lines(find_work(own_config(tmp_path)))[0]
