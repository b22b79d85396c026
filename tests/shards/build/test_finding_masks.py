"""Automatic pairing of images and masks: every patch has its own mask, or the build is refused."""

import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from segdist.core.errors import UserError
from segdist.inference.config import InferConfig
from segdist.inference.inputs import find_inputs
from shards.build.build import make_shards
from shards.build.config import ImagesConfig, SplitConfig
from shards.images.config import MasksConfig
from shards.images.folders import images_in
from shards.manifest import ClassInfo, Manifest
from tests.support.sets import assert_patches_have_their_masks, bright, build_own, noise, own_config, save

CLASSES = ("background=0", "cell=255")
MODEL = (ClassInfo("background", (0, 0, 0)), ClassInfo("cell", (255, 255, 255)))


def add(root: Path, image: str, mask: str | None, seed: int, shape: tuple[int, int] = (40, 30)) -> None:
    """Save an image, and the mask of its bright pixels, below `root`."""
    pixels = noise(seed, *shape)
    save(root / image, pixels)
    if mask is not None:
        save(root / mask, bright(pixels))


def settings(root: Path, images: str = "images", masks: str | None = "masks", **changes: object) -> dict[str, object]:
    """Settings for folders below `root`, with changes assigned to their sections."""
    own = {name: changes.pop(name) for name in ("pattern", "unlabelled") if name in changes}
    found = MasksConfig(folder=root / masks if masks else None, classes=CLASSES, name=str(changes.pop("name", "")))
    return {"images": ImagesConfig(folder=root / images, **own), "masks": found, **changes}  # type: ignore[arg-type]


def build(root: Path, **changes: object) -> Manifest:
    manifest = build_own(root, **changes)
    assert assert_patches_have_their_masks(root / "data" / "own") == 5 * sum(
        len(manifest.sources[split]) for split in ("train", "val")
    )
    return manifest


def refused(root: Path, **changes: object) -> str:
    with pytest.raises(UserError) as error:
        build_own(root, **changes)
    assert not (root / "data").exists()
    return str(error.value)


def count(manifest: Manifest) -> int:
    return sum(len(pairs) for pairs in manifest.sources.values())


@pytest.mark.parametrize(
    ("image", "mask", "rule"),
    [
        ("images/Img_{}.png", "masks/Mask_{}.png", r"Img(.*) -> Mask\1"),
        ("images/case_{:03}_0000.png", "masks/case_{:03}.png", r"(.*)_0000 -> \1"),
        ("images/{}.ome.tif", "masks/{}.png", r"(.*)\.ome -> \1"),
        (
            "images/a_{:06}_leftImg8bit.png",
            "masks/a_{:06}_gtFine_labelIds.png",
            r"(.*)leftImg8bit -> \1gtFine_labelIds",
        ),
        ("images/photo{}.png", "masks/label_{:03}.png", "{numbers}"),
        ("images/sub-{}_SEM.png", "masks/sub-{}_SEM_seg-manual.png", "{stem}_seg-manual"),
        ("images/{}.png", "masks/{}.png", "{stem}"),
    ],
)
def test_the_rule_is_found_printed_and_stored_in_the_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], image: str, mask: str, rule: str
) -> None:
    for number in range(7, 12):
        add(tmp_path, image.format(number), mask.format(number), number)
    manifest = build(tmp_path, **settings(tmp_path))
    assert manifest.recipe["masks"]["name"] == rule
    make_shards(own_config(tmp_path, **settings(tmp_path)))
    said = capsys.readouterr().out
    assert f"masks by the rule --masks.name '{rule}': " in said
    ends = sorted(range(7, 12), key=image.format)
    for number in (ends[0], ends[-1]):
        assert f"{Path(image.format(number)).name} with {Path(mask.format(number)).name}" in said
    # Giving the found rule explicitly means the same recipe.
    make_shards(own_config(tmp_path, **settings(tmp_path, name=rule)), quiet=True)


def test_files_in_subfolders_are_paired_by_their_paths(tmp_path: Path) -> None:
    for number in range(4):
        add(tmp_path, f"data1/rat{number % 2}/images/{number}.png", f"data1/rat{number % 2}/masks/{number}.png", number)
    assert count(build(tmp_path, **settings(tmp_path, "data1", None, pattern="**/*"))) == 4


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("both/{}.jpg", "both/{}.png"),
        ("both/Img_{}.png", "both/Mask_{}.png"),
        ("both/{}.png", "both/{}_mask.png"),
        ("both/{}.png", "both/{}_L.png"),
        ("both/photo {}.tif", "both/photo {} (ground truth).tif"),
    ],
)
def test_images_and_masks_in_one_folder_are_told_apart(tmp_path: Path, image: str, mask: str) -> None:
    for number in range(4):
        pixels = np.where(noise(number) > 128, 250, 5).astype(
            np.uint8
        )  # JPEG preserves which side of 128 a pixel is on
        pixels = np.kron(pixels[:5, :4], np.ones((8, 8), np.uint8))
        save(tmp_path / image.format(number), pixels)
        save(tmp_path / mask.format(number), bright(pixels))
    manifest = build(tmp_path, **settings(tmp_path, "both", None))
    assert count(manifest) == 4
    expected = {Path(image.format(number)).name for number in range(4)}
    assert {Path(pair.image).name for pairs in manifest.sources.values() for pair in pairs} == expected


def test_ambiguous_files_in_one_folder_are_refused(tmp_path: Path) -> None:
    for number in range(3):
        add(tmp_path, f"both/{number}.png", f"both/{number}.tif", number)
    message = refused(tmp_path, **settings(tmp_path, "both", None))
    assert "can't tell which of its 6 files" in message
    assert "--images.pattern" in message
    assert count(build(tmp_path, **settings(tmp_path, "both", None, pattern="*.png"))) == 3


def test_images_alone_are_not_taken_for_images_and_masks(tmp_path: Path) -> None:
    for number in (1, 2, 10, 20):
        add(tmp_path, f"both/{number}.png", None, number)
    assert "can't tell which" in refused(tmp_path, **settings(tmp_path, "both", None))


def test_channels_of_one_image_are_never_separate_images(tmp_path: Path) -> None:
    for case in range(3):
        add(tmp_path, f"images/case_{case}_0000.png", f"masks/case_{case}.png", case)
        add(tmp_path, f"images/case_{case}_0001.png", None, 10 + case)
    for changes in ({}, {"unlabelled": "skip"}, {"name": r"(.*)_\d{4} -> \1"}, {"name": r"(.*)_0000 -> \1"}):
        message = refused(tmp_path, **settings(tmp_path, **changes))
        assert "_0000" in message
    assert "named like channels of one image" in refused(tmp_path, **settings(tmp_path))
    assert count(build(tmp_path, **settings(tmp_path, pattern="*_0000.png"))) == 3


def test_numbered_camera_pictures_are_not_channels(tmp_path: Path) -> None:
    for number in range(6):
        add(tmp_path, f"images/IMG_{number:04}.png", f"masks/IMG_{number:04}_gt.png" if number < 2 else None, number)
    message = refused(tmp_path, **settings(tmp_path))
    assert "channels" not in message
    assert "--masks.name '{stem}_gt': pairs 2 of 6 images" in message
    assert count(build(tmp_path, **settings(tmp_path, unlabelled="skip"))) == 2


def test_images_in_subfolders_are_pointed_out(tmp_path: Path) -> None:
    for number in range(3):
        add(tmp_path, f"images/rat/{number}.png", f"masks/rat/{number}.png", number)
    assert "3 are in subfolders: --images.pattern '**/*'" in refused(tmp_path, **settings(tmp_path))
    assert count(build(tmp_path, **settings(tmp_path, pattern="**/*"))) == 3


def test_frames_with_one_mask_each_are_images(tmp_path: Path) -> None:
    for number in range(4):
        add(tmp_path, f"images/movie_{number:04}.png", f"masks/movie_{number:04}.png", number)
    assert count(build(tmp_path, **settings(tmp_path))) == 4


def test_ambiguous_rules_are_listed_and_one_can_be_chosen(tmp_path: Path) -> None:
    for number in range(3):
        add(tmp_path, f"images/{number}_leftImg8bit.png", f"masks/{number}_gtFine_labelIds.png", number)
        save(tmp_path / f"masks/{number}_gtFine_color.png", noise(number, channels=3))
    message = refused(tmp_path, **settings(tmp_path))
    assert "2 rules give every image a mask" in message
    for kind in ("labelIds", "color"):
        assert rf"--masks.name '(.*)leftImg8bit -> \1gtFine_{kind}'" in message
    assert "--images.csv" in message
    assert count(build(tmp_path, **settings(tmp_path, name=r"(.*)leftImg8bit -> \1gtFine_labelIds"))) == 3


def test_sizes_decide_between_two_rules(tmp_path: Path) -> None:
    """Name endings would pair 1_2 with 2_1; numbers and sizes pair them correctly."""
    shapes = {"1_2": (40, 30), "2_1": (30, 50)}
    for seed, (name, shape) in enumerate(shapes.items()):
        one, two = name.split("_")
        add(tmp_path, f"images/a{one}b{two}.png", f"masks/x{one}y{two}.png", seed, shape)
    assert count(build(tmp_path, **settings(tmp_path, split=SplitConfig(validation=0)))) == 2


def test_a_mask_of_another_size_is_refused_with_both_files(tmp_path: Path) -> None:
    for number in range(3):
        add(tmp_path, f"images/{number}.png", f"masks/{number}_m.png", number)
    save(tmp_path / "masks/1_m.png", bright(noise(1, 20, 30)))
    message = refused(tmp_path, **settings(tmp_path))
    assert "images/1.png is 40 x 30" in message
    assert "masks/1_m.png is 20 x 30" in message


def test_images_without_masks_are_skipped_on_request_and_counted_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(10):
        add(tmp_path, f"images/{number}.png", f"masks/{number}.png" if number % 3 == 0 else None, number)
    message = refused(tmp_path, **settings(tmp_path))
    assert "pairs 4 of 10 images" in message
    assert "--images.unlabelled skip" in message
    make_shards(own_config(tmp_path, **settings(tmp_path, unlabelled="skip")))
    assert capsys.readouterr().out.count("6 images have no mask and are left out") == 1
    assert assert_patches_have_their_masks(tmp_path / "data" / "own") == 20


def test_unlisted_images_need_no_mask(tmp_path: Path) -> None:
    for number in range(10):
        add(tmp_path, f"images/{number}.png", f"masks/{number}_m.png" if number % 3 == 0 else None, number)
    (tmp_path / "train.txt").write_text("0\n3\n6\n")
    split = SplitConfig(train_list=tmp_path / "train.txt", validation_images=("9.png",))
    manifest = build(tmp_path, **settings(tmp_path, split=split))
    assert [len(manifest.sources[name]) for name in ("train", "val")] == [3, 1]


def nfd(name: str) -> str:
    return unicodedata.normalize("NFD", name)


def test_names_match_in_any_unicode_normalization(tmp_path: Path) -> None:
    for number in range(1, 4):
        add(tmp_path, nfd(f"images/Größe-{number}.png"), f"masks/Größe-{number}.png", number)
    (tmp_path / "val.txt").write_text("Größe-2\n")
    manifest = build(tmp_path, **settings(tmp_path, split=SplitConfig(validation_list=tmp_path / "val.txt")))
    assert nfd("Größe-2") in manifest.sources["val"][0].image
    (tmp_path / "pairs.csv").write_text(
        "image,mask\n" + "".join(f"images/Größe-{n}.png,{nfd(f'masks/Größe-{n}.png')}\n" for n in (1, 2, 3))
    )
    listed = {"images": ImagesConfig(csv=tmp_path / "pairs.csv"), "masks": MasksConfig(classes=CLASSES)}
    assert count(build_own(tmp_path, name="listed", **listed)) == 3
    masks = MasksConfig(folder=tmp_path / "masks", classes=CLASSES)
    found = find_inputs(InferConfig(model=("m",), images=(str(tmp_path / "images"),), masks=masks), MODEL)
    assert all(image.mask for image in found.images)


def test_a_name_is_tried_literally_before_as_a_pattern(tmp_path: Path) -> None:
    for number in range(3):
        add(tmp_path, f"images/tile[x={number},y=0].png", f"masks/tile[x={number},y=0].png", number)
    add(tmp_path, "images/tilex.png", "masks/tilex.png", 7)
    split = SplitConfig(validation=0, test_images=("tile[x=1,y=0]",))
    manifest = build(tmp_path, **settings(tmp_path, split=split))
    assert [Path(pair.image).name for pair in manifest.sources["test"]] == ["tile[x=1,y=0].png"]
    assert len(images_in(tmp_path / "images", "tile[x=1,y=0].png")) == 1
    assert [path.name for path in images_in(tmp_path / "images", "tile[xyz].png")] == ["tilex.png"]


@pytest.fixture
def littered(tmp_path: Path) -> Path:
    """Three images and masks, with typical clutter from systems and programs."""
    for number in range(3):
        add(tmp_path, f"images/a/{number}.png", f"masks/a/{number}.png", number)
    for hidden in (".ipynb_checkpoints/0-checkpoint.png", "@eaDir/0.png/THUMB.jpg", "__MACOSX/._0.png", ".x/y.png"):
        add(tmp_path, f"images/a/{hidden}", None, 9)
    for kind in ("images", "masks"):
        (tmp_path / kind / "a" / "._0.png").write_bytes(b"\0\5\x16\7")
        (tmp_path / kind / "a" / "Thumbs.db").write_bytes(b"x")
        (tmp_path / kind / "a" / "folder.png").mkdir()
    return tmp_path


def test_hidden_and_system_folders_are_skipped(littered: Path) -> None:
    assert count(build(littered, **settings(littered, pattern="**/*"))) == 3
    assert count(build(littered, name="flat", **settings(littered, "images/a", "masks/a"))) == 3


@pytest.mark.parametrize("what", ["images", "images/**/*.png", "images/a/*"])
def test_infer_skips_hidden_and_system_folders_too(littered: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.chdir(littered)
    if what.endswith("*"):
        (littered / "images" / "a" / "folder.png").rmdir()
    found = find_inputs(InferConfig(model=("m",), images=(what,)), ())
    assert [Path(image.path).name for image in found.images] == ["0.png", "1.png", "2.png"]


def test_linked_folders_are_searched_without_following_cycles(tmp_path: Path) -> None:
    add(tmp_path, "images/a/0.png", None, 0)
    add(tmp_path, "elsewhere/1.png", None, 1)
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images" / "a" / "circle").symlink_to(tmp_path / "images")
    names = [path.relative_to(tmp_path).as_posix() for path in images_in(tmp_path / "images")]
    assert names == ["images/a/0.png", "images/linked/1.png"]


def test_masks_may_be_in_a_subfolder_of_the_image_folder(tmp_path: Path) -> None:
    for number in range(3):
        add(tmp_path, f"images/{number}.png", f"images/masks/{number}.png", number)
    assert count(build(tmp_path, **settings(tmp_path, masks="images/masks", pattern="**/*"))) == 3


def test_a_hint_is_given_only_if_it_helps(tmp_path: Path) -> None:
    for number in range(4):
        add(tmp_path, f"images/{number}.png", f"masks/{number}_seg.png", number)
    assert "perhaps --masks.name '{stem}_seg'" in refused(tmp_path, **settings(tmp_path, name="{stem}_mask"))
    (tmp_path / "masks").rename(tmp_path / "other")
    (tmp_path / "masks").mkdir()
    save(tmp_path / "masks" / "10.png", bright(noise(0)))
    assert "perhaps" not in refused(tmp_path, **settings(tmp_path, name="{stem}_mask"))


def stack(root: Path, pages: int = 6) -> None:
    images = np.stack([noise(number) for number in range(pages)])
    for kind, array in (("images", images), ("masks", np.stack([bright(image) for image in images]))):
        (root / kind).mkdir(parents=True)
        tifffile.imwrite(root / kind / "stack.tif", array, photometric="minisblack")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda root: SplitConfig(test_images=("stack.tif#page=2",), validation_images=("*#page=[45]",)), [3, 2, 1]),
        (lambda root: SplitConfig(test_list=root / "list.txt", validation=0.2), [3, 1, 2]),
        (lambda root: SplitConfig(train_list=root / "list.txt", validation=0), [2, 0, 0]),
    ],
)
def test_splits_can_name_pages_of_a_stack(
    tmp_path: Path, make: Callable[[Path], SplitConfig], expected: list[int]
) -> None:
    stack(tmp_path)
    (tmp_path / "list.txt").write_text("stack.tif#page=0\nstack#page=3\n")
    manifest = build(tmp_path, **settings(tmp_path, split=make(tmp_path)))
    assert [len(manifest.sources[split]) for split in ("train", "val", "test")] == expected


def test_a_csv_file_can_name_pages_of_a_stack(tmp_path: Path) -> None:
    stack(tmp_path)
    lines = [f"images/stack.tif#page={n},masks/stack.tif#page={n},{split}" for n, split in ((0, "train"), (4, "val"))]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,mask,split", *lines]))
    csv = {"images": ImagesConfig(csv=tmp_path / "pairs.csv"), "masks": MasksConfig(classes=CLASSES)}
    assert [len(build(tmp_path, **csv).sources[split]) for split in ("train", "val")] == [1, 1]


def test_unlisted_pages_of_a_stack_stay_together(tmp_path: Path) -> None:
    stack(tmp_path)
    add(tmp_path, "images/z.png", "masks/z.png", 99)
    manifest = build(tmp_path, **settings(tmp_path, split=replace(SplitConfig(), validation=0.5, test=0.0)))
    assert sorted(len(manifest.sources[split]) for split in ("train", "val")) == [1, 6]


def test_infer_finds_the_rule_too(tmp_path: Path) -> None:
    for number in range(3):
        add(tmp_path, f"images/Img_{number}.png", f"masks/Mask_{number}.png", number)
    masks = MasksConfig(folder=tmp_path / "masks", classes=CLASSES)
    found = find_inputs(InferConfig(model=("m",), images=(str(tmp_path / "images"),), masks=masks), MODEL)
    assert [Path(image.mask or "").name for image in found.images] == ["Mask_0.png", "Mask_1.png", "Mask_2.png"]
    save(tmp_path / "masks" / "old.png", bright(noise(0)))
    with pytest.raises(UserError, match=r"--images pairs\.csv"):
        find_inputs(InferConfig(model=("m",), images=(str(tmp_path / "images"),), masks=masks), MODEL)
