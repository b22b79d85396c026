"""What is to be built, known before anything is written: sources, their common format, and their cut into shards."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from segdist.core.errors import UserError
from shards.build.pairs import file_sources
from shards.build.recipe import MakeShardsConfig, digest_of_files, recipe_of
from shards.build.source_check import common_format
from shards.build.sources import Source, synthetic_sources
from shards.build.synthetic import CLASSES
from shards.build.writer import Target, Unit
from shards.images.masks import MaskReader
from shards.images.opening import split_address
from shards.manifest import SPLITS
from shards.records import MAX_SHARDS

NOTES = ".building"
"""Folder of the notes of finished shards, while a set is built."""
MIN_SHARDS = 8
"""Per split, where there are as many images."""


@dataclass(frozen=True)
class Plan:
    """What is to be built, known before anything is written."""

    config: MakeShardsConfig
    recipe: dict[str, Any]
    sources: tuple[Source, ...]
    target: Target

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """All shards, and the runs of test images. Cut evenly, by the number of sources and the recipe alone."""
        units = []
        for split in SPLITS:
            sources = [source for source in self.sources if source.split == split]
            patch_bytes = self.target.layout.stride * self.config.patches.per_image
            wanted = -(-len(sources) * patch_bytes // (self.config.shard_mb << 20))
            # A few shards even of a small set, so that several processes find work.
            count = min(max(wanted, MIN_SHARDS), len(sources))
            if count > MAX_SHARDS:
                raise UserError(f"{count} shards, at most {MAX_SHARDS} have a name; raise --shard-mb")
            cuts = [len(sources) * number // max(count, 1) for number in range(count + 1)]
            units += [Unit(split, number, tuple(sources[cuts[number] : cuts[number + 1]])) for number in range(count)]
        return tuple(units)

    @property
    def max_patches(self) -> int:
        """Patches if none is dropped."""
        return self.config.patches.per_image * sum(source.split != "test" for source in self.sources)

    def without_sources(self) -> "Plan":
        """What a worker needs beside its unit: no list of a million sources."""
        return replace(self, sources=())

    def note_path(self, unit: Unit) -> Path:
        return self.config.folder / NOTES / f"{unit.name}.json"

    def describe(self) -> list[str]:
        """The plan in lines for a person."""
        counts = Counter(source.split for source in self.sources)
        images = ", ".join(f"{counts[split]} {split}" for split in SPLITS)
        megabytes = self.max_patches * self.target.layout.stride / 1e6
        shards = sum(unit.split != "test" for unit in self.units)
        kind = f"{self.target.channels} channel{'s' * (self.target.channels > 1)}, {self.target.dtype}"
        return [
            f"images: {images} ({kind})",
            f"patches: at most {self.max_patches} of {self.config.patches.size} x {self.config.patches.size}",
            f"shards: {shards}, at most {megabytes:.0f} MB as npy records",
            f"folder: {self.config.folder}",
        ]


def make_plan(config: MakeShardsConfig) -> Plan:
    """Find the sources and what they have in common; reads names and headers, writes nothing.

    Raises:
        UserError: sources that can't be used together, with the files' names.
    """
    if not config.own_data:
        target = Target(config, CLASSES, config.patches.channels or 1, "uint8")
        return Plan(config, recipe_of(config, ""), tuple(synthetic_sources(config)), target)
    sources = file_sources(config)
    # An array of tasks looks at the headers once between them; the first source tells all what to expect.
    task, tasks = config.task_share()
    mine = list(dict.fromkeys(sources[:1] + sources[task::tasks]))
    channels, dtype = common_format(mine, config.patches.channels)
    if config.encoding == "png" and not (channels == 1 or (channels == 3 and dtype == "uint8")):
        raise UserError(
            f"--encoding png: PNG stores gray, or RGB of 8 bit; these images have {channels} channels of {dtype}; "
            "use --encoding npy"
        )
    files = digest_of_files(
        [(source.split, split_address(path)[0]) for source in sources for path in (source.image, source.mask)]
    )
    target = Target(config, MaskReader(config.masks).classes, channels, dtype)
    return Plan(config, recipe_of(config, files), tuple(sources), target)
