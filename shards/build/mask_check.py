"""Check the values of all masks before anything is cut, and report the problems of all files at once."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from segdist.core.errors import UserError
from segdist.core.machine import usable_cores
from segdist.core.terminal import Progress
from shards.build.config import MakeShardsConfig
from shards.build.sources import DrawnSource, FileSource, Source
from shards.images.image_file import bands
from shards.images.masks import MaskReader, unknown_message

SHOWN = 10


def check_masks(sources: Sequence[Source], config: MakeShardsConfig, *, quiet: bool = False) -> None:
    """Read all masks of the user's own images.

    Raises:
        UserError: values in no class, with their counts in each file; masks that can't be read, or are colored.
    """
    mine = [source for source in sources if not isinstance(source, DrawnSource)]
    reader = MaskReader(config.mask_settings)
    unknown: dict[str, Counter[str]] = {}
    problems = []
    threads = min(config.processes or usable_cores(), 16)
    with (
        ThreadPoolExecutor(threads) as pool,
        Progress("checking masks", total=len(mine), unit="masks", quiet=quiet or not mine) as progress,
    ):
        for source, (problem, counts) in zip(mine, pool.map(lambda each: _values(each, reader), mine), strict=True):
            if problem:
                problems.append(problem)
            if counts:
                unknown[str(source.mask)] = counts
            progress.advance()
    told = []
    if problems:
        more = f"\n  … and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        told.append(f"{len(problems)} masks can't be used:\n  " + "\n  ".join(problems[:SHOWN]) + more)
    if unknown:
        told.append(unknown_message(unknown, config.masks))
    if told:
        raise UserError("\n".join(told))


def _values(source: FileSource, reader: MaskReader) -> tuple[str, Counter[str]]:
    """What is wrong with a mask, and its values outside the classes. Orientation affects neither."""
    counts: Counter[str] = Counter()
    try:
        with reader.open(source.mask, upright=False) as mask:
            for top, bottom in bands(mask.height, mask.width):
                counts += mask.read_counted(top, bottom)[1]
    except UserError as error:
        return str(error), counts
    return "", counts
