"""Images and masks in one folder: in which ways can its files be told apart?"""

import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from shards.images.folders import name_of

JPEG = (".jpg", ".jpeg", ".jfif")
"""Masks are never saved so by those who know; photographs are."""

MASK_WORD = re.compile(
    r"(?<![a-z])(masks?|labels?|labelids|labeltrainids|segs?|segmentations?|segmented|gt|groundtruth|"
    r"ground[ _-]truth|annotations?|anno|truth|target|manual)(?![a-z])",
    re.IGNORECASE,
)
"""Words by which people call masks."""

MOST_ADDED = 4
"""Additions to names that are tried."""


def divisions(files: Sequence[Path], folder: Path) -> Iterator[tuple[list[Path], list[Path]]]:
    """Ways to divide files into images and masks, neither of them empty, likely ones first."""
    seen: set[frozenset[Path]] = set()
    for masks in _likely_masks(files, folder):
        chosen = frozenset(masks)
        if chosen and len(chosen) < len(files) and chosen not in seen:
            seen.add(chosen)
            yield [path for path in files if path not in chosen], [path for path in files if path in chosen]


def _likely_masks(files: Sequence[Path], folder: Path) -> Iterator[list[Path]]:
    names = {path: name_of(path.relative_to(folder)) for path in files}
    # Words that all files have in common tell nothing apart.
    yield [path for path in files if MASK_WORD.search(_spaced(names[path]))]
    yield [path for path in files if path.suffix.lower() not in JPEG]
    known = set(names.values())
    added: Counter[tuple[str, str]] = Counter()
    for name in known:
        parent, stem = posixpath.split(name)
        for cut in range(1, len(stem)):
            if posixpath.join(parent, stem[:cut]) in known:
                added["", stem[cut:]] += 1
            if posixpath.join(parent, stem[cut:]) in known:
                added[stem[:cut], ""] += 1
    # A digit or two more is another image, not the mask of `1.png`.
    telling = {
        addition: count for addition, count in added.items() if re.search(r"\w\W*[^\W\d_]|_[^\W\d_]", "".join(addition))
    }
    for (before, behind), _ in Counter(telling).most_common(MOST_ADDED):
        yield [path for path in files if _has(posixpath.basename(names[path]), before, behind)]


def _spaced(name: str) -> str:
    """`aMask` and `a_mask1` as words of their own."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)


def _has(stem: str, before: str, behind: str) -> bool:
    return stem.startswith(before) and stem.endswith(behind) and len(stem) > len(before) + len(behind)
