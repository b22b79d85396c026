"""Find the pages of a TIFF file that are images, not the smaller copies, thumbnails, labels and masks stored with one.

A page is identified by its number among the file's directories (IFDs); if one directory describes many planes (ImageJ
above 4 GB, MetaMorph), by the plane's number.
"""

import logging
from pathlib import Path

import tifffile

from segdist.core.errors import UserError
from shards.images.image_file import damage_reported

# It also logs what it raises, ahead of our message.
logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)

_REDUCED, _MASK = 1, 4
"""Bits of NewSubfileType: a smaller copy (also thumbnails, and the labels of slides), a transparency mask, which is
also 4 as a value of PhotometricInterpretation."""
_OLD_REDUCED = 2
"""Value of SubfileType, the predecessor of NewSubfileType."""
_SLIDES = ("svs", "ndpi", "scn", "bif", "qpi", "philips", "avs", "ome", "lsm")
"""Formats whose pages tifffile can interpret."""
_NO_IMAGES = ("thumbnail", "label", "macro", "map", "overview")


def tiff_page_numbers(path: Path) -> list[int]:
    """The numbers of the pages that are images, at least one.

    Raises:
        UserError: not a TIFF file, or a damaged one.
    """
    with damage_reported(path), tifffile.TiffFile(path, _multifile=False) as file:
        return image_pages(file)


def image_pages(file: tifffile.TiffFile) -> list[int]:
    """The numbers of the pages of an open `tifffile.TiffFile` that are images."""
    if not len(file.pages):
        raise UserError(f"{file.filehandle.path}: damaged: a TIFF file without a page")
    if len(file.pages) == 1:
        return list(range(planes_of_only_page(file)))
    numbers = range(len(file.pages))
    # Before `series`, which leaves pages without their tags.
    left_out = {number for number in numbers if is_copy(file.pages[number])}
    if any(getattr(file, f"is_{kind}") for kind in _SLIDES):
        left_out |= _beside_slides(file)
    return [number for number in numbers if number not in left_out] or list(numbers)


def is_copy(page: tifffile.TiffPage) -> bool:
    """True if tagged as a smaller copy of another page, or as its mask."""
    kind, old = (_tag(page, code) for code in (254, 255))
    return bool(kind & (_REDUCED | _MASK)) or old == _OLD_REDUCED or _tag(page, 262) == _MASK


def planes_of_only_page(file: tifffile.TiffFile) -> int:
    """Number of consecutive planes in a file with a single directory; usually 1."""
    page = file.pages[0]
    if not (file.is_imagej or file.is_shaped or file.is_stk):
        return 1
    try:
        if file.is_imagej:
            # Not from the series, which has fewer planes if the file was truncated.
            return max(1, int((file.imagej_metadata or {}).get("images", 1)))
        size = file.series[0].size
    except Exception:  # metadata can be anything; the page itself may be fine
        return 1
    return max(1, size // page.size) if page.size else 1


def _beside_slides(file: tifffile.TiffFile) -> set[int]:
    """Pages that the vendor's metadata mark as a copy or as not part of the slide."""
    found = set()
    try:
        for series in file.series:
            other = any(word in series.name.lower() for word in _NO_IMAGES)
            for level in series.levels[0 if other else 1 :]:
                found |= {page.index for page in level.pages if page is not None}
    except Exception:  # metadata can be anything; the tags still apply
        return set()
    finally:
        file.pages.useframes = False
    return found


def _tag(page: tifffile.TiffPage, code: int) -> int:
    value = page.tags.valueof(code, 0)
    return value if isinstance(value, int) else 0
