"""Parse the definitions of mask classes: `myelin=127,128`, `axon=192-255`, `cell=1-`, `road=#804080`."""

import colorsys
import itertools
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segdist.core.errors import UserError
from shards.manifest import IGNORE, ClassInfo

MAX_CLASSES = 253
"""Labels fit one byte, with one value reserved for ignored pixels and one for values in no class."""

HIGHEST = 2**63 - 1
"""The end of an open range."""

# Okabe and Ito's colors, distinguishable with any color vision; class 0 is black.
_COLORS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")


@dataclass(frozen=True)
class ClassValues:
    """A parsed `name=values` definition."""

    name: str
    ranges: tuple[tuple[int, int], ...] = ()
    colors: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class ClassTable:
    """The parsed classes and ignored values."""

    labeled: tuple[tuple[int, ClassValues], ...]
    """Each label with its values; last, IGNORE with the ignored values."""
    by_color: bool
    """True if masks are read by colors, not by values."""
    classes: tuple[ClassInfo, ...]


def parse_classes(classes: tuple[str, ...], ignore: tuple[str, ...], colors: tuple[str, ...]) -> ClassTable:
    """Parse `--masks.classes`, `--masks.ignore` and `--masks.colors`. Raises UserError naming the setting."""
    if not classes:
        raise UserError("--masks.classes: name the classes, label 0 first, for example `background=0 cell=255`")
    if len(classes) > MAX_CLASSES:
        raise UserError(f"--masks.classes: {len(classes)} classes, but at most {MAX_CLASSES} fit one byte")
    entries = [parse_class(text, label) for label, text in enumerate(classes)]
    labeled = list(enumerate(entries))
    if ignore:
        labeled.append((IGNORE, parse_values("--masks.ignore", "ignore", ",".join(ignore))))
    by_color = any(entry.colors for entry in entries)
    for _, entry in labeled:
        if bool(entry.colors) != by_color or (entry.colors and entry.ranges):
            raise UserError(
                f"--masks.classes: {entry.name!r} mixes values and colors with the others; "
                "give every class colors (#rrggbb), or every class values"
            )
    names = Counter(entry.name for entry in entries)
    if doubles := [name for name, count in names.items() if count > 1]:
        raise UserError(f"--masks.classes: {', '.join(doubles)} is listed twice; join the values with a comma")
    _refuse_overlaps(labeled)
    if not colors:
        shown = [entry.colors[0] if entry.colors else default_color(label) for label, entry in enumerate(entries)]
    elif len(colors) != len(entries):
        raise UserError(f"--masks.colors: {len(colors)} colors for {len(entries)} classes")
    else:
        shown = [parse_color("--masks.colors", text) for text in colors]
    infos = tuple(ClassInfo(entry.name, color) for entry, color in zip(entries, shown, strict=True))
    return ClassTable(tuple(labeled), by_color, infos)


def _refuse_overlaps(labeled: list[tuple[int, ClassValues]]) -> None:
    ranges = [(low, high, str(low), entry.name) for _, entry in labeled for low, high in entry.ranges]
    for _, entry in labeled:
        ranges += [(packed, packed, f"#{packed:06x}", entry.name) for packed in map(pack_color, entry.colors)]
    ranges.sort()
    for (_, end, _, name), (start, _, shown, other) in itertools.pairwise(ranges):
        if start <= end:
            raise UserError(f"--masks.classes: {shown} means both {name!r} and {other!r}")


def default_color(label: int) -> tuple[int, int, int]:
    """Display color of a label: color-blind safe ones first, then hues at steps of the golden angle."""
    if label < len(_COLORS):
        return parse_color("color", _COLORS[label])
    red, green, blue = colorsys.hsv_to_rgb(label * 0.381966 % 1, 0.55 + 0.45 * (label % 2), 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def parse_class(text: str, label: int) -> ClassValues:
    name, equals, values = text.partition("=")
    name = name.strip()
    if not name:
        raise UserError(f"--masks.classes: {text!r} has no name; write `name` or `name=values`")
    return parse_values("--masks.classes", name, values) if equals else ClassValues(name, ((label, label),))


def parse_values(setting: str, name: str, text: str) -> ClassValues:
    ranges, colors = [], []
    for part in (piece.strip() for piece in text.split(",")):
        if part.startswith("#"):
            colors.append(parse_color(setting, part))
        elif match := re.fullmatch(r"(-?\d{1,18})(?:(-)(-?\d{1,18})?)?", part):
            low = int(match[1])
            high = (int(match[3]) if match[3] else HIGHEST) if match[2] else low
            if low > high:
                raise UserError(f"{setting}: {part!r} of {name!r} is not a range: the lower value comes first")
            ranges.append((low, high))
        else:
            raise UserError(
                f"{setting}: {part!r} of {name!r} is not a value (127), range (120-140, or 1- for all from 1) or color "
                "(#rrggbb)"
            )
    return ClassValues(name, tuple(ranges), tuple(colors))


def parse_color(setting: str, text: str) -> tuple[int, int, int]:
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        raise UserError(f"{setting}: {text!r} is not a color; write #rrggbb")
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def pack_color(color: tuple[int, ...]) -> int:
    return (color[0] << 16) | (color[1] << 8) | color[2]


def unpack_colors(packed: NDArray[np.signedinteger]) -> NDArray[np.signedinteger]:
    return np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=-1)
