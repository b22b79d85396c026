"""Sets built with default settings: choices are made once and kept with the set, and classes are found in the masks."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segdist.core.errors import UserError
from segdist.core.paths import MANIFEST
from shards.build.build import make_shards
from shards.build.config import ImagesConfig, MakeShardsConfig, PatchesConfig, SplitConfig
from shards.build.work import find_work
from shards.images.config import MasksConfig
from shards.images.reduce import reduced_labels, reduced_pixels
from shards.manifest import read_manifest
from shards.read.reader import ShardSet
from tests.support.sets import add, blobs, contents, noise, tiny_config


def collection(folder: Path, count: int = 8, channels: int = 1, value: int = 255) -> MakeShardsConfig:
    """Images of 120 x 120 pixels with a disk each, and settings that give only their location."""
    for number in range(count):
        add(folder, f"{number}.png", noise(number, 120, 120, channels), blobs(number, value))
    return MakeShardsConfig(
        name="own",
        root=folder / "data",
        processes=1,
        images=ImagesConfig(folder=folder / "images"),
        masks=MasksConfig(folder=folder / "masks"),
    )


def built(config: MakeShardsConfig) -> None:
    config.validate()
    make_shards(config, quiet=True)


def test_a_set_with_default_settings_is_complete_and_gives_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = collection(tmp_path)
    make_shards(config)
    said = capsys.readouterr().out
    manifest = read_manifest(config.folder)
    for setting in ("masks.classes", "split.test", "patches.size", "patches.per_image", "patches.scale"):
        assert f"  {setting} = " in said
    assert [info.name for info in manifest.classes] == ["value_0", "value_255"]
    assert {split: len(sources) for split, sources in manifest.sources.items()} == {"train": 6, "val": 1, "test": 1}
    assert (manifest.patch, manifest.scale, manifest.upright) == (96, 1, False)
    recipe = manifest.recipe
    assert recipe["patches"]["size"] == 96
    assert all(choice["reason"] for choice in recipe["choices"])


def test_user_settings_are_not_overridden(tmp_path: Path) -> None:
    config = replace(collection(tmp_path), patches=PatchesConfig(size=32), split=SplitConfig(test=0.0))
    work = find_work(config)
    assert work.config.patches.size == 32
    assert not {choice.setting for choice in work.choices} & {"patches.size", "split.test"}
    assert sum(source.split == "test" for source in work.sources) == 0


def test_running_again_repeats_no_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = collection(tmp_path)
    built(config)
    path = config.folder / MANIFEST
    manifest = json.loads(path.read_text())
    for choice in manifest["recipe"]["choices"]:
        if choice["setting"] == "patches.per_image":
            choice["value"] = manifest["recipe"]["patches"]["per_image"] = 7
    path.write_text(json.dumps(manifest))
    before = contents(config.folder)
    make_shards(config)
    assert "already finished, with this recipe" in capsys.readouterr().out
    assert contents(config.folder) == before
    # Setting the chosen value explicitly means the same set; another value doesn't.
    make_shards(replace(config, patches=PatchesConfig(per_image=7)), quiet=True)
    with pytest.raises(UserError, match=r"patches\.per_image: 7 → 8"):
        make_shards(replace(config, patches=PatchesConfig(per_image=8)), quiet=True)


def test_a_set_from_before_choices_existed_keeps_its_old_defaults(tmp_path: Path) -> None:
    then = PatchesConfig(size=96, per_image=20, balance=0.0, scale=1)
    explicit = replace(
        collection(tmp_path),
        patches=then,
        split=SplitConfig(validation=0.1, test=0.0),
        images=ImagesConfig(folder=tmp_path / "images", upright="no"),
        masks=MasksConfig(folder=tmp_path / "masks", classes=("ground=0", "cell=255")),
    )
    built(explicit)
    path = explicit.folder / MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["recipe"]["choices"], manifest["recipe"]["patches"]["scale"], manifest["recipe"]["images"]["upright"]
    del manifest["scale"], manifest["upright"]
    path.write_text(json.dumps(manifest | {"format_version": 1}))
    before = contents(explicit.folder)
    make_shards(replace(collection(tmp_path), masks=explicit.masks), quiet=True)
    assert contents(explicit.folder) == before


def test_synthetic_images_keep_the_methods_patches(tmp_path: Path) -> None:
    work = find_work(tiny_config(tmp_path, patches=PatchesConfig()))
    found = work.config.patches
    assert (found.size, found.per_image, found.balance, found.scale) == (96, 20, 0.0, 1)


def test_all_tasks_of_an_array_make_the_same_choices(tmp_path: Path) -> None:
    config = collection(tmp_path)
    whole = find_work(config)
    for task in range(3):
        work = find_work(replace(config, task=f"{task}/3"))
        assert (work.recipe, work.config.patches) == (whole.recipe, whole.config.patches)


@pytest.mark.parametrize("scale", [2, 4])
def test_patches_of_a_downscaled_image_are_windows_of_it(tmp_path: Path, scale: int) -> None:
    config = replace(collection(tmp_path, 3), patches=PatchesConfig(size=16, per_image=5, scale=scale))
    config = replace(config, patches=replace(config.patches, drop_background=False), split=SplitConfig(test=0.0))
    built(config)
    shards = ShardSet(config.folder)
    manifest = shards.manifest
    assert manifest.scale == scale
    number = 0
    for shard in range(len(manifest.of_split("train"))):
        for record in range(shards.sizes("train")[shard]):
            images, masks = shards.read("train", np.array([shard]), np.array([record]))
            image, mask = images[0], masks[0]
            row = shards.index("train", shard)[record]
            source = Path(manifest.sources["train"][int(row["source"])].image)
            pixels = reduced_pixels(noise(int(source.stem), 120, 120)[..., None], scale)
            labels = reduced_labels((blobs(int(source.stem)) > 0).astype(np.uint8), scale)
            y, x = int(row["y"]), int(row["x"])
            assert np.array_equal(image[0], pixels[y : y + 16, x : x + 16, 0])
            assert np.array_equal(mask, labels[y : y + 16, x : x + 16])
            number += 1
    assert number == 15


def test_color_files_without_color_become_gray(tmp_path: Path) -> None:
    for number in range(3):
        add(tmp_path, f"{number}.png", np.repeat(noise(number, 120, 120)[..., None], 3, 2), blobs(number))
    config = collection(tmp_path, 0)
    assert find_work(config).target.channels == 1
    add(tmp_path, "3.png", noise(3, 120, 120, 3), blobs(3))
    assert find_work(config).target.channels == 3
    add(tmp_path, "4.png", noise(4, 120, 120), blobs(4))
    work = find_work(config)
    assert work.target.channels == 3
    assert [choice.setting for choice in work.choices].count("patches.channels") == 1


def test_colors_of_masks_become_classes(tmp_path: Path) -> None:
    config = collection(tmp_path, 0)
    for number in range(3):
        mask = np.zeros((120, 120, 3), np.uint8)
        mask[blobs(number) > 0] = (255, 0, 128)
        add(tmp_path, f"{number}.png", noise(number, 120, 120), mask)
    assert find_work(config).config.masks.classes == ("000000=#000000", "ff0080=#ff0080")


def test_ignored_values_do_not_become_classes(tmp_path: Path) -> None:
    config = collection(tmp_path, 3)
    mask = blobs(9)
    mask[0, 0] = 7
    add(tmp_path, "9.png", noise(9, 120, 120), mask)
    config = replace(config, masks=replace(config.masks, ignore=("7",)))
    assert find_work(config).config.masks.classes == ("value_0=0", "value_255=255")


def test_stray_values_are_refused_with_a_table(tmp_path: Path) -> None:
    config = collection(tmp_path, 3)
    mask = blobs(9)
    mask[0, 0] = 7
    add(tmp_path, "9.png", noise(9, 120, 120), mask)
    with pytest.raises(UserError, match=r"(?s)rare enough to be strays .*\(7\).*value +masks +pixels.*7 +1 +1 "):
        find_work(config)


def test_masks_with_many_values_are_refused(tmp_path: Path) -> None:
    config = collection(tmp_path, 0)
    for number in range(3):
        add(tmp_path, f"{number}.png", noise(number, 120, 120), noise(number + 50, 120, 120))
    with pytest.raises(UserError, match=r"values in 3 masks are more than 20 classes"):
        find_work(config)


def test_masks_with_one_value_are_refused(tmp_path: Path) -> None:
    config = collection(tmp_path, 0)
    add(tmp_path, "0.png", noise(0, 120, 120), np.zeros((120, 120), np.uint8))
    with pytest.raises(UserError, match="all pixels of 1 masks have one value"):
        find_work(config)
