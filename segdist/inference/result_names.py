"""What the results of images are called."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from segdist.core.errors import UserError
from segdist.core.files import LONGEST_NAME
from shards.images.opening import split_address

LONGEST_SUFFIX = len("..zarr.tmp")
"""What the names of files that are called like an image add to it, at most."""
RESULT_SUFFIXES = (".png", ".tif", ".zarr", ".npy", ".csv", ".json", ".parts")
"""What is added to an image's name for its results, its record and the folder of its parts."""


def result_names(places: Sequence[str]) -> list[str]:
    """Names of results, one for each image: its path below the root without suffix, `stack-page3` for a page.

    Images whose results would have one name keep their suffix: `a.tif` and `a.png` stay what they are, and
    `s.tif#page=1` beside `s-page1.tif` becomes `s.tif-page1`.

    Raises:
        UserError: a folder has the name that the result of an image needs.
    """
    addresses = [split_address(Path(place)) for place in places]
    pages = [f"-page{page}" if page else "" for _, page in addresses]
    short = [_cut(f"{path.with_suffix('')}{page}") for (path, _), page in zip(addresses, pages, strict=True)]
    full = [_cut(f"{path}{page}") for (path, _), page in zip(addresses, pages, strict=True)]
    names = short
    # A full name may be another image's short one, which then becomes longer in turn: `a.tif` and `a.tif.png`.
    while clashes := {name for name, uses in Counter(names).items() if uses > 1}:
        longer = [full[number] if name in clashes else name for number, name in enumerate(names)]
        if longer == names:
            raise UserError(f"{sorted(clashes)[0]}: several images of this name; rename one of them")
        names = longer
    folders = {str(folder) for name in names for folder in Path(name).parents}
    for name, place in zip(names, places, strict=True):
        for suffix in RESULT_SUFFIXES:
            if name + suffix in folders:
                raise UserError(
                    f"{place}: its result would be called {name + suffix}, as a folder of images is; rename one of them"
                )
    return names


def _cut(path: str) -> str:
    """`path`, its name cut and marked with a digest where files that are called so would get too long a name."""
    name = Path(path)
    content = os.fsencode(name.name)
    if len(content) <= LONGEST_NAME - LONGEST_SUFFIX:
        return path
    kept = content[: LONGEST_NAME - LONGEST_SUFFIX - 9].decode(errors="ignore")
    return str(name.with_name(f"{kept}-{hashlib.sha256(content).hexdigest()[:8]}"))
