"""Plan a build before anything is written: sources, their common format, and their division into shards."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from segdist.core.choice import Choice
from segdist.core.errors import UserError
from segdist.core.json_values import JsonObject
from segdist.core.keyed import Purpose
from segdist.core.paths import BUILDING, SOURCE
from segdist.core.terminal import warn
from shards.build.choices import DRAWN, SetFacts, choose_patches, choose_split
from shards.build.config import MakeShardsConfig
from shards.build.decide import Decisions
from shards.build.facts import SAMPLE, facts_of, gray_all_over
from shards.build.found_classes import find_classes
from shards.build.headers import Header, common_format, read_headers
from shards.build.pairs import Pairs, find_pairs
from shards.build.recipe import digest_of_files, recipe_of
from shards.build.sources import DrawnSource, FileSource, Source
from shards.build.splits import chosen_numbers, deal, named_groups
from shards.build.synthetic import CLASSES
from shards.build.writer import Target, Unit
from shards.images.masks import MaskReader
from shards.images.opening import split_address
from shards.images.orientation import decide_orientation
from shards.manifest import SPLITS
from shards.records import MAX_SHARDS

PATCH_SETTINGS = ("patches.size", "patches.per_image", "patches.balance", "patches.scale", "images.upright")
MIN_SHARDS = 8
"""Per split, if there are as many images."""


@dataclass(frozen=True)
class Work:
    """What to build, known before anything is written."""

    config: MakeShardsConfig
    """The completed config: open settings are decided."""
    recipe: JsonObject
    """Recipe of the settings as given or chosen; the same for all tasks of an array."""
    sources: tuple[Source, ...]
    target: Target
    choices: Sequence[Choice] = ()
    """The settings that were chosen automatically."""

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """All shards, and the runs of test images. Divided evenly, by the number of sources and the recipe alone."""
        units = []
        for split in SPLITS:
            sources = [source for source in self.sources if source.split == split]
            patch_bytes = self.target.layout.stride * self.config.patches.per_image
            wanted = -(-len(sources) * patch_bytes // (self.config.shard_mb << 20))
            # Even a small set gets a few shards, so that several processes have work.
            count = min(max(wanted, MIN_SHARDS), len(sources))
            if count > MAX_SHARDS:
                raise UserError(f"{count} shards, but the file names allow at most {MAX_SHARDS}; raise --shard-mb")
            cuts = [len(sources) * number // max(count, 1) for number in range(count + 1)]
            units += [Unit(split, number, tuple(sources[cuts[number] : cuts[number + 1]])) for number in range(count)]
        return tuple(units)

    @property
    def max_patches(self) -> int:
        """Number of patches if none is dropped."""
        return self.config.patches.per_image * sum(source.split != "test" for source in self.sources)

    def without_sources(self) -> "Work":
        """What a worker needs in addition to its unit: no list of a million sources."""
        return replace(self, sources=())

    def note_path(self, unit: Unit) -> Path:
        return self.config.folder / BUILDING / f"{unit.name}.json"


def find_work(config: MakeShardsConfig, tell: Callable[[str], None] = lambda note: None) -> Work:
    """Find the sources and their common format; reads names and headers, writes nothing.

    `tell` is called with messages about how they were found, before anything else can fail.

    Raises:
        UserError: sources that can't be used together, with the files' names.
    """
    decided = Decisions(config)
    if not config.own_data:
        decided.take(DRAWN)
        config = decided.config
        target = Target(config, CLASSES, config.patches.channels or 1, "uint8")
        return Work(
            config, recipe_of(config, "", decided.choices), tuple(drawn_sources(config)), target, decided.choices
        )
    found = find_pairs(config)
    for note in found.notes:
        tell(note)
    decided.config = replace(decided.config, masks=replace(decided.config.masks, name=found.rule))
    decided.take(_split_choices(found, config))
    sources = file_sources(decided.config, found)
    if decided.is_open("masks.classes"):
        decided.take([find_classes(sources, config.masks.ignore)])
    # The tasks of an array share the reading of headers; the first source tells all of them what to expect.
    task, tasks = config.task_share()
    mine = list(dict.fromkeys(sources[:1] + sources[task::tasks]))
    headers = read_headers(mine, decided.config)
    oriented = _oriented(decided.config, sources, headers)
    decided.take(_channel_choices(mine, headers))
    channels, dtype = common_format(mine, headers, replace(oriented, patches=decided.config.patches))
    if config.encoding == "png" and not (channels == 1 or (channels == 3 and dtype == "uint8")):
        raise UserError(
            f"--encoding png: PNG stores gray, or 8-bit RGB; these images have {channels} channels of {dtype}; "
            "use --encoding npy"
        )
    if decided.is_open(*PATCH_SETTINGS):
        decided.take(choose_patches(_facts(sources, decided.config)))
    files = digest_of_files(
        [(source.split, split_address(path)[0]) for source in sources for path in (source.image, source.mask)]
    )
    recipe = recipe_of(decided.config, files, decided.choices)
    config = replace(decided.config, images=replace(decided.config.images, orientation=oriented.images.orientation))
    target = Target(config, MaskReader(config.masks).classes, channels, dtype)
    return Work(config, recipe, tuple(sources), target, decided.choices)


def _split_choices(found: Pairs, config: MakeShardsConfig) -> list[Choice]:
    """Fractions to hold out and to use for validation, by the number of images (or groups) in each split so far."""
    groups = named_groups([pair.entry for pair in found.pairs], config.split)
    free, test_named = groups[""], groups["test"] > 0 or config.split.train_list is not None
    if config.split.test is not None:
        free -= len(chosen_numbers(free, config.split.test, config.seed, Purpose.TEST_SPLIT))
        test_named = True
    return choose_split(
        free,
        groups["train"],
        test_named=test_named,
        validation_named=groups["val"] > 0,
        grouped=bool(config.split.group),
    )


def _channel_choices(sources: list[FileSource], headers: list[Header]) -> list[Choice]:
    """Number of channels if images are, or look, both gray and colored."""
    counts = {header.channels for header in headers if not header.problem}
    if counts not in ({3}, {1, 3}):
        return []
    if gray_all_over(sources):
        return [Choice("patches.channels", 1, "all color files are gray throughout")]
    return [Choice("patches.channels", 3, "some images are gray, some are colored")] if counts == {1, 3} else []


def _facts(sources: list[FileSource], config: MakeShardsConfig) -> SetFacts:
    """Facts about the training images, the same for all tasks of an array."""
    train = [source for source in sources if source.split == "train"]
    some = [train[len(train) * number // min(SAMPLE, len(train))] for number in range(min(SAMPLE, len(train)))]
    sizes = [header.pair.image_size for header in read_headers(some, config) if header.pair]
    return facts_of(some, sizes, len(train), config)


def _oriented(config: MakeShardsConfig, sources: list[FileSource], headers: list[Header]) -> MakeShardsConfig:
    """The config with the decision about orientation tags; the same in all tasks of an array."""
    pairs = [header.pair for header in headers if header.pair]
    if len(headers) < len(sources) and any(pair.in_doubt for pair in pairs):
        # The task's own images may not decide it, or decide less than all of them.
        pairs = [header.pair for header in read_headers(sources, config) if header.pair]
    decided = decide_orientation(pairs, config.images.orientation, "--images.orientation")
    if decided == "ignore" and config.images.orientation == "auto":
        warn(
            f"{sum(pair.in_doubt for pair in pairs)} images have an orientation tag that their masks lack, or vice "
            "versa; the sizes show that masks were drawn on the pixels as stored, so these tags are ignored"
        )
    return replace(config, images=replace(config.images, orientation=decided))


def file_sources(config: MakeShardsConfig, found: Pairs) -> list[FileSource]:
    """The user's labeled images with their splits.

    Raises:
        UserError: an image in two splits, or none to train on.
    """
    dealt = deal([pair.entry for pair in found.pairs], config.split, config.seed)
    sources, counts = [], Counter[str]()
    for pair, entry in zip(found.pairs, dealt, strict=True):
        if entry.split:
            sources.append(FileSource(entry.split, counts[entry.split], pair.image, pair.mask, entry.group))
            counts[entry.split] += 1
    if not counts["train"]:
        raise UserError(f"no image is left to train on ({dict(counts)}); check --split.*")
    return sources


def drawn_sources(config: MakeShardsConfig) -> list[DrawnSource]:
    """The synthetic images, with the training ones divided into train and val."""
    held = chosen_numbers(config.synthetic.train, config.split.validation or 0, config.seed, Purpose.VALIDATION_SPLIT)
    sources, counts = [], Counter[str]()
    for part, count in (("train", config.synthetic.train), ("test", config.synthetic.test)):
        digits = max(4, len(str(count - 1)))
        for drawing in range(count):
            split = "val" if part == "train" and drawing in held else part
            folder, name = config.folder / SOURCE / part, f"{drawing:0{digits}}.png"
            sources.append(
                DrawnSource(split, counts[split], folder / "images" / name, folder / "masks" / name, drawing)
            )
            counts[split] += 1
    return sources
