"""What `segdist make-shards --dry-run` prints."""

from collections import Counter
from collections.abc import Iterable

from shards.build.work import Work
from shards.images.opening import split_address
from shards.manifest import SPLITS


def without_validation(training: Iterable[str], validating: int) -> str:
    """Explain why a set has no validation patches, and what that means.

    `training`: the images to train on; `validating`: the number of validation images.
    """
    files = len({split_address(image)[0] for image in training})
    if validating:
        why = (
            f"those of the {validating} validation images hold only background (label 0); keep them with "
            "--patches.no-drop-background"
        )
    elif files == 1:
        why = "there is one image, and its pages stay together; label another, or name validation pages"
    else:
        why = (
            "there are no validation images: --split.validation is 0, the default for few images, or all images are "
            "one group (--split.group)"
        )
    return f"0 validation patches: {why}. Training will have no score for selecting its best model"


def plan_lines(work: Work) -> list[str]:
    """The plan as lines of text."""
    counts = Counter(source.split for source in work.sources)
    images = ", ".join(f"{counts[split]} {split}" for split in SPLITS)
    megabytes = work.max_patches * work.target.layout.stride / 1e6
    shards = sum(unit.split != "test" for unit in work.units)
    kind = f"{work.target.channels} channel{'s' * (work.target.channels > 1)}, {work.target.dtype}"
    no_score = [] if counts["val"] else [without_validation([str(source.image) for source in work.sources], 0)]
    size, scale = work.config.patches.size, work.config.patches.scale
    reduced = f" of images downscaled to 1/{scale}" if scale > 1 else ""
    return [
        *no_score,
        f"images: {images} ({kind})",
        f"patches: at most {work.max_patches} of {size} x {size}{reduced}",
        f"shards: {shards}, at most {megabytes:.0f} MB as npy records",
        f"folder: {work.config.folder}",
        *(f"chosen: {choice.line()}" for choice in work.choices),
    ]
