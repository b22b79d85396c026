"""What all sources must have in common, found from their headers before anything is built."""

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from segdist.core.errors import UserError
from shards.build.sources import FileSource, sizes_differ
from shards.images.masks import mask_size
from shards.images.opening import open_image

THREADS = 8
SHOWN = 10


@dataclass(frozen=True)
class Header:
    """What the headers of a source's two files say, or what is wrong with them."""

    channels: int = 0
    dtype: str = ""
    problem: str = ""


def common_format(sources: Sequence[FileSource], channels: int | None) -> tuple[int, str]:
    """Channels and dtype of the patches; `channels` is what the user asked for, None for those of the images.

    Raises:
        UserError: damaged files, sizes that differ between image and mask, mixed channel counts or bit depths.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        headers = list(pool.map(read_header, sources))
    if problems := [header.problem for header in headers if header.problem]:
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
            "convert them to one, or take one kind with --images.pattern"
        )
    if channels is None:
        if len(by_channels) > 1:
            counts = {f"{count} channel{'s' * (count > 1)}": files for count, files in by_channels.items()}
            raise UserError(
                f"images with different numbers of channels: {_groups(counts)}; --patches.channels 3 repeats gray "
                "images, --patches.channels 1 takes color files that are gray all over as gray"
            )
        channels = next(iter(by_channels))
    return channels, next(iter(by_dtype))


def read_header(source: FileSource) -> Header:
    """The headers of one source's files."""
    try:
        with open_image(source.image) as image:
            size = mask_size(source.mask)
            if size != (image.height, image.width):
                return Header(problem=sizes_differ(source.image, source.mask, (image.height, image.width), size))
            return Header(image.channels, str(image.dtype))
    except UserError as error:
        return Header(problem=str(error))


def _groups(files: dict[str, list[Path]]) -> str:
    parts = []
    for kind, paths in sorted(files.items(), key=lambda item: len(item[1])):
        shown = ", ".join(str(path) for path in paths[:3]) + (", …" if len(paths) > 3 else "")
        parts.append(f"{len(paths)} with {kind} ({shown})")
    return "; ".join(parts)
