"""The settings of `[masks]`: where masks are and what their values mean."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shards.images.class_values import pack_color, parse_classes
from shards.images.mask_names import MaskRule
from shards.manifest import ClassInfo

Unknown = Literal["refuse", "ignore", "nearest"]


@dataclass(frozen=True)
class MasksConfig:
    """What the masks look like."""

    folder: Path | None = None
    """Folder of the masks; the images' folder if left out."""
    name: str = ""
    """Name of an image's mask without its suffix; {stem} is the image's name without suffix ("{stem}_mask"). With parts
    of that name: "(.*)_photo -> \\1_mask" (a regular expression with groups). By the numbers in both: "{numbers}".
    Left out, the one rule that pairs all is looked for."""
    classes: tuple[str, ...] = ()
    """Classes, label 0 first; left out: the values that the masks hold, if they are few. `background cell` (values 0
    and 1), `background=0 myelin=127,128 axon=192-255`, `background=0 cell=1-` (all values from 1: numbered instances),
    or `sky=#87ceeb road=#804080` for color masks."""
    ignore: tuple[str, ...] = ()
    """Values, ranges or colors that count nowhere (`255`, `11`, `#ffffff`)."""
    unknown: Unknown = "refuse"
    """What to do with values that are in no class: refuse; ignore these pixels; or take the nearest class's value."""
    colors: tuple[str, ...] = ()
    """Colors to show the classes in (`#rrggbb`); the masks' own, or color-blind safe ones, if left out."""

    def validate(self) -> None:
        """Raises UserError where a class, a value or a color can't be understood or is listed twice."""
        if self.name:
            MaskRule(self.name)
        parse_classes(self.classes, self.ignore, self.colors)


def synthetic_masks_config(classes: tuple[ClassInfo, ...]) -> MasksConfig:
    """The settings with which the palette masks of a synthetic set are read."""
    colors = tuple(f"#{pack_color(info.color):06x}" for info in classes)
    return MasksConfig(classes=tuple(info.name for info in classes), colors=colors)
