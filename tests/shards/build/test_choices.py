"""Which facts lead to which choices in make-shards."""

from dataclasses import replace
from typing import Any

import pytest

from shards.build.choices import ClassFacts, SetFacts, choose_patches, choose_split

GROUND, CELL = ClassFacts("ground", 0.7, 200, 400), ClassFacts("cell", 0.3, 20, 30)
FACTS = SetFacts(images=20, height=512, width=640, classes=(GROUND, CELL), kept={2: 0.97, 4: 0.93})


def chosen(**changes: Any) -> dict[str, Any]:
    return {choice.setting: choice.value for choice in choose_patches(replace(FACTS, **changes))}


def with_cells(**changes: Any) -> dict[str, Any]:
    return chosen(classes=(GROUND, replace(CELL, **changes)))


def test_small_objects_are_learned_at_full_size() -> None:
    assert chosen()["patches.scale"] == 1


def test_large_objects_are_downscaled_until_they_fit() -> None:
    assert with_cells(length=60, width=40)["patches.scale"] == 2
    assert with_cells(length=150, width=40)["patches.scale"] == 4
    assert with_cells(length=1_000, width=40)["patches.scale"] == 4


def test_thin_classes_prevent_downscaling() -> None:
    assert with_cells(length=150, width=9)["patches.scale"] == 1
    assert with_cells(length=150, width=12)["patches.scale"] == 2


def test_masks_that_lose_detail_prevent_downscaling() -> None:
    large = (GROUND, replace(CELL, length=150, width=40))
    assert chosen(classes=large, kept={2: 0.8, 4: 0.7})["patches.scale"] == 1
    assert chosen(classes=large, kept={2: 0.95, 4: 0.7})["patches.scale"] == 2


def test_a_patch_holds_an_object_and_its_surroundings() -> None:
    thin = {"width": 4}  # so that nothing is downscaled
    sizes = [with_cells(length=length, **thin)["patches.size"] for length in (5, 39, 50, 70, 500)]
    assert sizes == [96, 128, 128, 192, 192]
    assert all(size % 32 == 0 for size in sizes)


def test_a_patch_is_at_most_slightly_larger_than_the_images() -> None:
    assert chosen(height=60, width=500)["patches.size"] == 64
    assert chosen(height=20, width=20)["patches.size"] == 32


def test_patches_cover_the_images_within_limits_on_their_number() -> None:
    found = chosen()
    assert found["patches.per_image"] == round(3 * 512 * 640 / 96**2)
    assert chosen(images=1, height=100, width=100)["patches.per_image"] == 300
    assert chosen(images=100_000)["patches.per_image"] == 8
    assert chosen(images=10, height=60_000, width=60_000)["patches.per_image"] == 4_000


def test_rare_classes_get_balanced_patches() -> None:
    assert chosen()["patches.balance"] == 0
    assert with_cells(share=0.01)["patches.balance"] == pytest.approx(0.33)


def test_upright_images_are_passed_on_as_such() -> None:
    assert chosen()["images.upright"] == "no"
    assert chosen(upright=True)["images.upright"] == "yes"


def test_unlabeled_images_do_not_prevent_a_choice() -> None:
    assert chosen(classes=())["patches.size"] == 96


@pytest.mark.parametrize(
    ("images", "held", "validating"),
    [(1, 0, 0), (2, 1, 0), (4, 1, 0), (5, 1, 0), (6, 1, 1), (20, 3, 2), (100, 15, 8), (5_000, 200, 200)],
)
def test_split_shares_work_for_few_and_many_images(images: int, held: int, validating: int) -> None:
    test, validation = choose_split(images, test_named=False, validation_named=False, grouped=False)
    assert (test.setting, validation.setting) == ("split.test", "split.validation")
    assert round(test.value * images) == held or (test.value > 0 and held == 1)
    left = images - held
    assert round(validation.value * left) == validating or (validation.value > 0 and validating == 1)
    assert bool(validation.value) == bool(validating)


def test_nothing_is_drawn_if_the_user_names_the_held_out_or_validation_images() -> None:
    test, validation = choose_split(20, test_named=True, validation_named=True, grouped=False)
    assert (test.value, validation.value) == (0, 0)


def test_validation_images_come_from_those_that_the_user_names_for_training() -> None:
    _, validation = choose_split(0, 40, test_named=True, validation_named=False, grouped=False)
    assert (validation.value, validation.reason) == (0.1, "4 of 40 images, to select the best model")
