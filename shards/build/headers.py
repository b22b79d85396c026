"""Check what all sources must have in common, from their headers, before anything is built."""

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from segdist.core.errors import UserError
from segdist.core.terminal import warn
from shards.build.config import MakeShardsConfig
from shards.build.sources import FileSource, size_problem
from shards.images.masks import MaskReader
from shards.images.opening import open_image
from shards.images.orientation import OrientedPair, oriented_pair

THREADS = 8
SHOWN = 10


@dataclass(frozen=True)
class Header:
    """The contents of the headers of a source's two files, or what is wrong with them."""

    channels: int = 0
    alpha: int = 0
    """Channels dropped as transparency."""
    dtype: str = ""
    pair: OrientedPair | None = None
    problem: str = ""


def read_headers(sources: Sequence[FileSource], config: MakeShardsConfig) -> list[Header]:
    """The headers of each source's files."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda source: read_header(source, config), sources))


def common_format(
    sources: Sequence[FileSource], headers: Sequence[Header], config: MakeShardsConfig
) -> tuple[int, str]:
    """Channels and dtype of the patches. `config` gives the number of channels, and its orientation must be decided.

    Raises:
        UserError: damaged files, sizes that differ between image and mask, mixed channel counts or bit depths.
    """
    problems = [header.problem for header in headers]
    for number, (source, header) in enumerate(zip(sources, headers, strict=True)):
        if header.pair is not None:
            problems[number] = size_problem(source.image, source.mask, header.pair, config.images.orientation)
    if problems := [problem for problem in problems if problem]:
        more = f"\n  … and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError(f"{len(problems)} images can't be used:\n  " + "\n  ".join(problems[:SHOWN]) + more)
    by_channels: dict[int, list[Path]] = defaultdict(list)
    by_dtype: dict[str, list[Path]] = defaultdict(list)
    for source, header in zip(sources, headers, strict=True):
        by_channels[header.channels].append(source.image)
        by_dtype[header.dtype].append(source.image)
    if len(by_dtype) > 1:
        raise UserError(
            f"images of different bit depth: {_groups(by_dtype)}; "
            "convert them to one depth, or select one kind with --images.pattern"
        )
    channels = config.patches.channels
    if channels is None:
        if len(by_channels) > 1:
            counts = {f"{count} channel{'s' * (count > 1)}": files for count, files in by_channels.items()}
            raise UserError(
                f"images with different numbers of channels: {_groups(counts)}; --patches.channels 3 repeats gray "
                "images, --patches.channels 1 treats color files that are gray throughout as gray"
            )
        channels = next(iter(by_channels))
    _tell_of_transparency(headers)
    return channels, next(iter(by_dtype))


def read_header(source: FileSource, config: MakeShardsConfig) -> Header:
    """The headers of one source's files."""
    try:
        reader = MaskReader(config.masks)
        with open_image(source.image, channels=config.patches.channels) as image, reader.open(source.mask) as mask:
            return Header(image.channels, image.alpha, str(image.dtype), oriented_pair(image, mask.file))
    except UserError as error:
        return Header(problem=str(error))


def _tell_of_transparency(headers: Sequence[Header]) -> None:
    dropped = [header for header in headers if header.alpha]
    if dropped:
        total = dropped[0].channels + dropped[0].alpha
        warn(
            f"{len(dropped)} images have a channel tagged as transparency (alpha), which is dropped. If it is really a "
            f"band, such as near infrared, keep it with --patches.channels {total}"
        )


def _groups(files: dict[str, list[Path]]) -> str:
    parts = []
    for kind, paths in sorted(files.items(), key=lambda item: len(item[1])):
        shown = ", ".join(str(path) for path in paths[:3]) + (", …" if len(paths) > 3 else "")
        parts.append(f"{len(paths)} with {kind} ({shown})")
    return "; ".join(parts)
