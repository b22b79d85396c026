"""Names of the results of images."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from segdist.core.errors import UserError
from segdist.core.files import LONGEST_NAME
from shards.images.opening import split_address

LONGEST_SUFFIX = len("..zarr.tmp")
"""The most characters that the files of an image add to its name."""
RESULT_SUFFIXES = (".png", ".tif", ".zarr", ".npy", ".csv", ".json", ".parts")
"""Suffixes added to an image's name for its results, its record and the folder of its parts."""


def result_names(places: Sequence[str]) -> list[str]:
    """One result name per image: its path below the root without suffix; `stack-page3` for page 3.

    Images whose results would have the same name keep their suffix: `a.tif` and `a.png` stay as they are, and
    `s.tif#page=1` next to `s-page1.tif` becomes `s.tif-page1`.

    Raises:
        UserError: a result would have the name of another one, or of a folder of images.
    """
    addresses = [split_address(Path(place)) for place in places]
    pages = [f"-page{page}" if page else "" for _, page in addresses]
    short = [_cut(f"{path.with_suffix('')}{page}") for (path, _), page in zip(addresses, pages, strict=True)]
    full = [_cut(f"{path}{page}") for (path, _), page in zip(addresses, pages, strict=True)]
    names = short
    # A full name may equal another image's short name, which must then be lengthened too: `a.tif` and `a.tif.png`.
    while clashes := {name for name, uses in Counter(names).items() if uses > 1}:
        longer = [full[number] if name in clashes else name for number, name in enumerate(names)]
        if longer == names:
            raise UserError(f"{sorted(clashes)[0]}: several images have this name; rename one of them")
        names = longer
    folders = {str(folder) for name in names for folder in Path(name).parents}
    for name, place in zip(names, places, strict=True):
        for suffix in RESULT_SUFFIXES:
            if name + suffix in folders:
                raise UserError(
                    f"{place}: its result would be called {name + suffix}, like a folder of images; rename one of them"
                )
    return names


def _cut(path: str) -> str:
    """`path`, its name shortened and marked with a digest if the names of its results would be too long."""
    name = Path(path)
    content = os.fsencode(name.name)
    if len(content) <= LONGEST_NAME - LONGEST_SUFFIX:
        return path
    kept = content[: LONGEST_NAME - LONGEST_SUFFIX - 9].decode(errors="ignore")
    return str(name.with_name(f"{kept}-{hashlib.sha256(content).hexdigest()[:8]}"))
