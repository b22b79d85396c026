"""Find sources whose pixels or labels have changed since a set was built from them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from segdist.core.errors import UserError
from segdist.core.files import size_and_time
from segdist.core.terminal import Progress
from shards.build.config import MakeShardsConfig
from shards.build.headers import THREADS
from shards.build.sources import Source, UnknownLabels
from shards.images.opening import split_address


def changed_sources(
    sources: Sequence[Source],
    contents: Sequence[str],
    since: int,
    config: MakeShardsConfig,
    channels: int,
    *,
    quiet: bool = True,
) -> list[Source]:
    """The sources whose pixels or labels no longer match the digests in `contents`.

    Files last modified before `since` (nanoseconds) count as unchanged, as in `make`, so usually only modification
    times are checked. The other files are read.
    """
    known = [pair for pair in zip(sources, contents, strict=True) if pair[1]]
    with ThreadPoolExecutor(THREADS) as pool:
        times = list(pool.map(_written, [source for source, _ in known]))
    newer = [pair for pair, written in zip(known, times, strict=True) if written > since]
    changed = []
    label = f"comparing files newer than {config.folder}"
    with Progress(label, total=len(newer), unit="images", quiet=quiet or not newer) as progress:
        for source, content in newer:
            if _content(source, config, channels) != content:
                changed.append(source)
            progress.advance()
    return changed


def _written(source: Source) -> int:
    return max(size_and_time(split_address(address)[0])[1] for address in (source.image, source.mask))


def _content(source: Source, config: MakeShardsConfig, channels: int) -> str:
    try:
        with source.open(config, channels) as image:
            return image.content
    except (UserError, UnknownLabels):
        return "unreadable"  # so it has changed; rebuilding reports the error
