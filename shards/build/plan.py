"""What `segdist make-shards --dry-run` prints."""

from collections import Counter

from shards.build.work import Work
from shards.manifest import SPLITS


def plan_lines(work: Work) -> list[str]:
    """The work in lines for a person."""
    counts = Counter(source.split for source in work.sources)
    images = ", ".join(f"{counts[split]} {split}" for split in SPLITS)
    megabytes = work.max_patches * work.target.layout.stride / 1e6
    shards = sum(unit.split != "test" for unit in work.units)
    kind = f"{work.target.channels} channel{'s' * (work.target.channels > 1)}, {work.target.dtype}"
    return [
        f"images: {images} ({kind})",
        f"patches: at most {work.max_patches} of {work.config.patches.size} x {work.config.patches.size}",
        f"shards: {shards}, at most {megabytes:.0f} MB as npy records",
        f"folder: {work.config.folder}",
    ]
