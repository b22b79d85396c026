"""Pairing rules: a rule counts only if it leaves no image and no mask over."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdist.core.errors import UserError
from shards.build.pairing import apply, best_rules, channels
from shards.images.mask_names import MaskRule
from tests.support.programs import environment


def found(images: list[str], masks: list[str], needed: list[str] | None = None) -> list[str]:
    """The rules that count, one for each distinct pairing."""
    counting = [pairing for pairing in best_rules(images, masks, needed or images) if pairing.counts]
    distinct = {tuple(sorted(pairing.masks.items())): pairing.rule.text for pairing in reversed(counting)}
    return list(distinct.values())


@pytest.mark.parametrize(
    ("image", "mask", "rule"),
    [
        ("{}", "{}", "{stem}"),
        ("{}", "{}_mask", "{stem}_mask"),
        ("{}", "mask_{}", "mask_{stem}"),
        ("Img_{}", "Mask_{}", r"Img(.*) -> Mask\1"),
        ("{}_0000", "{}", r"(.*)_0000 -> \1"),
        ("{}.ome", "{}", r"(.*)\.ome -> \1"),
        ("{}.ome", "{}_labels.ome", r"(.*)\.ome -> \1_labels.ome"),
        ("{}_leftImg8bit", "{}_gtFine_labelIds", r"(.*)leftImg8bit -> \1gtFine_labelIds"),
        ("scan {} (raw)", "scan {} (gt)", r"(.*)raw\) -> \1gt)"),
        ("train/images/{}", "train/masks/{}", r"(.*/)images/([^/]*) -> \g<1>masks/\g<2>"),
        ("{}", "{}_2", "{stem}_2"),
        ("rat/{}", "{}_x", r"(?:.*/)?([^/]*) -> \1_x"),
        ("2019_{}_a", "2020_{}_b", r"2019(.*)a -> 2020\1b"),
    ],
)
@pytest.mark.parametrize(
    "cores", [("7", "8", "10", "23"), ("001", "002", "101"), ("ab", "abc", "b"), ("x.y_1", "x.z_1")]
)
def test_a_replaced_or_removed_part_of_the_name_is_found(
    image: str, mask: str, rule: str, cores: tuple[str, ...]
) -> None:
    images, masks = [image.format(core) for core in cores], [mask.format(core) for core in cores]
    assert len(found(images, masks)) == 1
    chosen = best_rules(images, masks, images)[0]
    assert dict(chosen.masks) == dict(zip(images, masks, strict=True))
    # The rule found is equivalent to the handwritten one.
    assert dict(apply(MaskRule(rule), images, masks, images).masks) == dict(chosen.masks)


@settings(deadline=None, max_examples=150)
@given(
    cores=st.lists(st.text("ab1_-. ", min_size=1, max_size=6), min_size=2, max_size=8, unique=True),
    affixes=st.tuples(*[st.text("aim_0.", max_size=4)] * 4),
)
def test_any_prefix_and_suffix_are_found(cores: list[str], affixes: tuple[str, str, str, str]) -> None:
    images = [f"i{affixes[0]}{core}{affixes[1]}" for core in cores]
    masks = [f"m{affixes[2]}{core}{affixes[3]}" for core in cores]
    expected = dict(zip(images, masks, strict=True))
    assert expected in [dict(pairing.masks) for pairing in best_rules(images, masks, images) if pairing.counts]


def test_numbers_pair_names_with_nothing_else_in_common() -> None:
    images = [f"photo{number}" for number in range(1, 12)]
    masks = [f"label_{number:03}" for number in range(1, 12)]
    assert found(images, masks) == ["{numbers}"]
    pairing = best_rules(images, masks, images)[0]
    assert pairing.masks["photo7"] == "label_007"
    assert pairing.masks["photo11"] == "label_011"


def test_several_numbers_count_together() -> None:
    images = [f"rat{rat}_slice{part}" for rat in (1, 2) for part in (9, 10)]
    masks = [f"R0{rat}-{part:02}-seg" for rat in (1, 2) for part in (9, 10)]
    assert found(images, masks) == ["{numbers}"]
    assert best_rules(images, masks, images)[0].masks["rat2_slice10"] == "R02-10-seg"


def test_case_is_ignored_if_that_leaves_one_mask() -> None:
    images, masks = ["Scan_1", "Scan_2"], ["scan_1_mask", "scan_2_mask"]
    assert len(found(images, masks)) == 1
    assert apply(MaskRule("{stem}_mask"), images, masks, images).masks["Scan_2"] == "scan_2_mask"
    assert apply(MaskRule("{stem}"), ["Aa"], ["aa", "AA"], ["Aa"]).without == ("Aa",)


def test_a_rule_that_leaves_anything_over_does_not_count() -> None:
    images = ["a", "b", "c"]
    assert not found(images, ["a_mask", "b_mask"])
    assert not found(images, ["a_mask", "b_mask", "c_mask", "d_mask"])
    assert not found(images, ["a_mask", "b_mask", "c_label"])
    assert not found(["a_0000", "a_0001", "b_0000", "b_0001"], ["a", "b"])


def test_images_that_need_no_mask_may_have_none() -> None:
    images = [f"{number:03}" for number in range(40)]
    masks = [f"{number:03}_label" for number in range(0, 40, 5)]
    assert not found(images, masks)
    assert found(images, masks, images[::5]) == ["{stem}_label"]


def test_the_nearest_rule_leaves_the_fewest_over() -> None:
    images = [f"cell{number}" for number in range(10)]
    masks = [f"cell{number}_gt" for number in range(9)] + ["notes"]
    nearest = best_rules(images, masks, images)[0]
    assert nearest.rule.text == "{stem}_gt"
    assert nearest.without == ("cell9",)
    assert nearest.unused == ("notes",)


def test_one_image_and_one_mask_are_paired() -> None:
    assert found(["photo_12"], ["truth_12"])
    assert found(["a/photo"], ["truth"]) == ["a/photo -> truth"]
    assert found(["photo"], ["truth"]) == ["photo -> truth"]
    assert found(["a"], ["a_mask"]) == ["{stem}_mask"]


def test_every_process_finds_the_same_rule() -> None:
    code = (
        "from shards.build.pairing import best_rules; i = ['aa_1', 'aa_2', 'ab_1']; m = ['xaa_1a', 'xaa_2a', 'xab_1a'];"
        "print([pairing.rule.text for pairing in best_rules(i, m, i)])"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=environment(PYTHONHASHSEED=seed),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(texts) == 1


def test_nnu_net_channels_are_distinguished_from_other_numbers() -> None:
    names = ["a_0000", "a_0001", "b_0000", "c_1"]
    assert channels(names, ["a", "b"]) == [("a_0000", "a_0001")]
    assert channels(["p_0001_0000", "p_0001_0001"], ["p_0001"]) == [("p_0001_0000", "p_0001_0001")]
    assert channels(["IMG_0001", "IMG_0002"], ["x", "y"]) == []
    assert channels(["IMG_0000", "IMG_0001"], ["IMG_0000_mask"]) == []


def test_many_names_are_paired_from_samples() -> None:
    images = [f"IMG_{number}_v2" for number in range(5_000)]
    masks = [f"seg-{number}" for number in range(5_000)]
    assert best_rules(images, masks, set(images))[0].masks["IMG_4999_v2"] == "seg-4999"


@pytest.mark.parametrize(
    ("rule", "image", "mask"),
    [
        ("{stem}_mask", "a/b", "a/b_mask"),
        (r"(\w+)_(\d+)_rgb -> \2-\1", "x/road_7_rgb", "x/7-road"),
        (r"(?P<id>\d+).* -> m\g<id>", "12_raw", "m12"),
        (r"images/(.*) → labels/\1_gt", "images/a/b", "labels/a/b_gt"),
        (r"(\d+) -> \1", "seven", None),
    ],
)
def test_user_written_rules_are_applied(rule: str, image: str, mask: str | None) -> None:
    assert MaskRule(rule).mask_of(image) == mask


@pytest.mark.parametrize("text", ["mask", r"(\d+ -> \1", r"(\d+) -> \2"])
def test_an_invalid_rule_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--masks\.name"):
        MaskRule(text)
