"""The preset `auto`: which facts lead to which choices."""

from dataclasses import replace
from typing import Any

import pytest

from segdist.core.choice import Choice, in_force, settings_of
from segdist.core.parsing import from_dict, to_dict
from segdist.training.choices import Facts, choose, times_seen
from segdist.training.config import TrainConfig

FACTS = Facts(
    images=100,
    patches=5_000,
    patch=96,
    pixels=(700, 200, 100),
    drawn=False,
    upright=False,
    device="cpu",
    world_size=1,
    grain=1,
    bf16=False,
    reference_steps=1_000,
)


def chosen(**changes: Any) -> dict[str, Any]:
    return {choice.setting: choice.value for choice in choose(replace(FACTS, **changes))}


def test_all_choices_are_config_settings_with_a_reason() -> None:
    for facts in (FACTS, replace(FACTS, upright=True, bf16=True, patches=200), replace(FACTS, drawn=True)):
        choices = choose(facts)
        config = from_dict(TrainConfig, settings_of(choices), "auto")
        config.validate()
        assert in_force(choices, to_dict(config)) == choices
        assert all(choice.reason for choice in choices)
        assert len({choice.setting for choice in choices}) == len(choices)


def test_more_time_means_a_wider_model_and_a_lower_rate() -> None:
    widths = [chosen(reference_steps=steps)["model.width"] for steps in (300, 4_000, 20_000, 200_000)]
    rates = [chosen(reference_steps=steps)["optim.lr"] for steps in (300, 4_000, 20_000, 200_000)]
    assert widths == [16, 24, 32, 64]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(("patch", "depth"), [(96, 4), (256, 4), (32, 3), (40, 3), (48, 3), (20, 2), (33, 1)])
def test_the_depth_divides_the_patch_and_leaves_pixels_at_the_bottom(patch: int, depth: int) -> None:
    assert chosen(patch=patch)["model.depth"] == depth


def test_a_cpu_gets_small_batches_and_a_gpu_full_ones() -> None:
    assert [chosen(patch=patch)["batch_size"] for patch in (64, 96, 128, 192)] == [16, 8, 4, 2]
    assert chosen(patch=192, device="cuda")["batch_size"] == 16


def test_a_rare_class_means_the_published_batch_size() -> None:
    assert [chosen(patch=patch, pixels=(990, 10))["batch_size"] for patch in (64, 96, 128, 192)] == [16, 16, 9, 4]


def test_every_rank_gets_equally_many_samples_and_batch_norm_more_than_one() -> None:
    assert [chosen(world_size=ranks)["batch_size"] for ranks in (2, 3, 4, 8)] == [8, 9, 8, 16]


def test_an_exact_run_gets_whole_grains() -> None:
    assert [chosen(grain=4, patch=patch)["batch_size"] for patch in (96, 128, 192)] == [8, 4, 4]
    assert chosen(grain=4, world_size=3)["batch_size"] == 12


def test_a_batch_is_no_larger_than_the_set() -> None:
    assert chosen(patches=1, patch=64)["batch_size"] == 4


def test_dice_is_added_except_for_synthetic_images() -> None:
    assert chosen(pixels=(800, 150, 20))["loss.name"] == "cross_entropy+dice"
    assert chosen(pixels=(500, 500, 0))["loss.name"] == "cross_entropy+dice"
    assert chosen(pixels=(990, 5, 5), drawn=True)["loss.name"] == "cross_entropy"


def test_augmentation_grows_with_the_number_of_views_of_a_patch() -> None:
    few, some, many = (chosen(patches=patches) for patches in (5_000, 500, 100))
    assert not few["augment.rotate90"]
    assert "augment.scale" not in few
    assert some["augment.rotate90"]
    assert 0 < some["augment.scale"] < many["augment.scale"]


def test_few_images_mean_strong_augmentation_however_short_the_run() -> None:
    few, many = (chosen(images=images, reference_steps=100) for images in (7, 100))
    assert few["augment.scale"] == chosen(patches=100)["augment.scale"]
    assert "augment.scale" not in many


def test_twice_the_time_or_half_the_set_doubles_the_views_of_a_patch() -> None:
    once = times_seen(FACTS, 16, 8)
    assert times_seen(replace(FACTS, reference_steps=2_000), 16, 8) == pytest.approx(2 * once)
    assert times_seen(replace(FACTS, patches=2_500), 16, 8) == pytest.approx(2 * once)
    assert times_seen(FACTS, 32, 8) < once / 2


def test_upright_images_are_neither_rotated_nor_flipped_upside_down() -> None:
    found = chosen(upright=True, patches=100)
    assert found["augment.upside_down"] is False
    assert "augment.rotate90" not in found
    assert 0 < found["augment.rotate"] <= 10


def test_synthetic_images_keep_the_methods_flips_and_tiles() -> None:
    found = chosen(drawn=True, patches=10)
    assert {key for key in found if key.startswith(("augment", "inference"))} == {"augment.rotate90"}
    assert found["augment.rotate90"] is False


def test_bf16_is_chosen_where_the_cpu_supports_it() -> None:
    assert chosen(bf16=True)["precision"] == "bf16"
    assert "precision" not in chosen()
    assert "precision" not in chosen(bf16=True, device="cuda")


def test_an_overridden_choice_is_not_shown() -> None:
    choices = [Choice("model.width", 16, "why"), Choice("batch_size", 8, "why")]
    assert in_force(choices, {"model": {"width": 32}, "batch_size": 8}) == choices[1:]


def test_a_line_shows_setting_value_and_reason() -> None:
    assert Choice("augment.rotate90", True, "no up").line() == "augment.rotate90 = on: no up"
    assert Choice("masks.classes", ["a=0", "b=1"], "found").line() == "masks.classes = a=0 b=1: found"
    assert Choice("optim.lr", 0.0060, "usual").line() == "optim.lr = 0.006: usual"
