"""Turn mask values into classes if the user names none."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from segdist.core.choice import Choice
from segdist.core.errors import UserError
from segdist.core.terminal import Progress
from shards.build.choices import IN_MASKS, MOST_CLASSES, SHARE_OF_PIXELS
from shards.build.sources import FileSource
from shards.images.class_values import ClassValues, parse_values, unpack_colors
from shards.images.image_file import ImageFile, bands
from shards.images.opening import open_image

SHOWN = 30
"""Values that a message lists."""

Found = dict[str, Counter[str]]
"""Per value (`127`) or color (`#ff0000`), its number of pixels in each mask."""


def find_classes(sources: Sequence[FileSource], ignore: Sequence[str] = (), *, quiet: bool = False) -> Choice:
    """Choose `masks.classes` from the values of all masks, lowest first; the lowest becomes label 0.

    Args:
        ignore: as `--masks.ignore`.

    Raises:
        UserError: too many values, or strays; the message is the table of values.
    """
    found = read_values(sources, quiet=quiet)
    ignored = parse_values("--masks.ignore", "ignore", ",".join(ignore)) if ignore else ClassValues("")
    found = {value: counts for value, counts in found.items() if not _is_ignored(value, ignored)}
    total = sum(sum(counts.values()) for counts in found.values())
    order = sorted(found, key=lambda value: (value.startswith("#"), value if value.startswith("#") else float(value)))
    strays = [
        value
        for value in order
        if len(found[value]) < min(IN_MASKS, len(sources)) and sum(found[value].values()) < SHARE_OF_PIXELS * total
    ]
    whole = all(value.startswith("#") or (float(value).is_integer() and float(value) >= 0) for value in order)
    if strays or len(order) > MOST_CLASSES or len(order) < 2 or not whole:
        raise UserError(_message(found, order, strays, total, len(sources)))
    return Choice("masks.classes", [_text(value) for value in order], f"the values of {len(sources)} masks")


def read_values(sources: Sequence[FileSource], *, quiet: bool = False) -> Found:
    """All values of all masks; if any mask has colors, their colors.

    Raises:
        UserError: a mask that can't be read.
    """
    for colors in (False, True):
        found: Found = {}
        with Progress("reading masks", total=len(sources), unit="masks", quiet=quiet) as progress:
            for source in sources:
                with open_image(source.mask, "colors" if colors else "stored") as mask:
                    counts = _counted(mask, colors=colors)
                if counts is None:
                    break
                for value, pixels in counts.items():
                    found.setdefault(value, Counter())[str(source.mask)] += pixels
                progress.advance()
            else:
                return found
    raise AssertionError("colors are read from every mask")


def _counted(mask: ImageFile, *, colors: bool) -> Counter[str] | None:
    """Pixels per value, or per color; None for a mask that must be read by colors."""
    counts: Counter[str] = Counter()
    for top, bottom in bands(mask.height, mask.width):
        pixels = mask.read(top, bottom)
        if pixels.shape[2] not in (1, 3):
            raise UserError(
                f"{mask.path}: a mask has one channel (values) or three (colors), but this one has {pixels.shape[2]}"
            )
        if colors:
            eight = (pixels >> 8 if pixels.dtype == np.uint16 else pixels).astype(np.int32)
            eight = np.repeat(eight, 3, axis=2) if eight.shape[2] == 1 else eight
            packed = eight[..., 0] << 16 | eight[..., 1] << 8 | eight[..., 2]
            values, pixels_of = np.unique(packed, return_counts=True)
            names = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in unpack_colors(values).tolist()]
        else:
            if (pixels[..., :1] != pixels).any():
                return None
            values, pixels_of = np.unique(pixels[..., 0], return_counts=True)
            one = 255 if mask.one_bit else 1
            names = [f"{value * one:g}" if values.dtype.kind == "f" else str(value * one) for value in values.tolist()]
        counts.update(dict(zip(names, pixels_of.tolist(), strict=True)))
    return counts


def _is_ignored(value: str, ignored: ClassValues) -> bool:
    if value.startswith("#"):
        return value in {f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in ignored.colors}
    return any(low <= float(value) <= high for low, high in ignored.ranges)


def _text(value: str) -> str:
    """The class of a value: `value_127=127`, `ff0000=#ff0000`."""
    return f"{value[1:]}={value}" if value.startswith("#") else f"value_{int(float(value))}={int(float(value))}"


def _message(found: Found, order: Sequence[str], strays: Sequence[str], total: int, masks: int) -> str:
    if len(order) > MOST_CLASSES:
        problem = f"{len(order)} values in {masks} masks are more than {MOST_CLASSES} classes"
    elif strays:
        problem = (
            f"{len(strays)} values are rare enough to be strays of interpolation or JPEG ({', '.join(strays[:10])})"
        )
    elif len(order) < 2:
        problem = f"all pixels of {masks} masks have one value"
    else:
        problem = "some values are negative or not whole numbers"
    return (
        f"--masks.classes is not given, and the mask values can't be used as classes: {problem}\n"
        + "\n".join(_table(found, order, total))
        + "\nname the classes, label 0 first: --masks.classes background=0 cell=1-254; ignore values with "
        "--masks.ignore or --masks.unknown ignore"
    )


def _table(found: Found, order: Sequence[str], total: int) -> Iterator[str]:
    yield f"  {'value':>9}  {'masks':>6}  {'pixels':>12}  share"
    for value in order[:SHOWN]:
        pixels = sum(found[value].values())
        yield f"  {value:>9}  {len(found[value]):>6}  {pixels:>12,}  {100 * pixels / max(total, 1):.3g} %"
    if len(order) > SHOWN:
        yield f"  … and {len(order) - SHOWN} more values"
