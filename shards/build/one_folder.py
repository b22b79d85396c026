"""Images and masks in one folder: the ways to tell them apart."""

import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from shards.images.folders import name_of

JPEG = (".jpg", ".jpeg", ".jfif")
"""Lossy formats: photographs are saved in these, masks should never be."""

MASK_WORD = re.compile(
    r"(?<![a-z])(masks?|labels?|labelids|labeltrainids|segs?|segmentations?|segmented|gt|groundtruth|"
    r"ground[ _-]truth|annotations?|anno|truth|target|manual)(?![a-z])",
    re.IGNORECASE,
)
"""Words used in the names of masks."""

MOST_ADDED = 4
"""Affixes to try."""


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
    # Words that all files share don't distinguish them.
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
    # With an extra digit or two it is another image, not the mask of `1.png`.
    telling = {
        addition: count for addition, count in added.items() if re.search(r"\w\W*[^\W\d_]|_[^\W\d_]", "".join(addition))
    }
    for (before, behind), _ in Counter(telling).most_common(MOST_ADDED):
        yield [path for path in files if _has(posixpath.basename(names[path]), before, behind)]


def _spaced(name: str) -> str:
    """Split `aMask` and `a_mask1` into words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)


def _has(stem: str, before: str, behind: str) -> bool:
    return stem.startswith(before) and stem.endswith(behind) and len(stem) > len(before) + len(behind)
