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
    """Where the masks are and what their values mean."""

    folder: Path | None = None
    """Folder of the masks; default: the images' folder."""
    name: str = ""
    """Name of an image's mask without its suffix; {stem} is the image's name without suffix ("{stem}_mask"). From
    parts of that name: "(.*)_photo -> \\1_mask" (a regular expression with groups). By the numbers in both:
    "{numbers}".
    Default: the one rule that pairs all is searched for."""
    classes: tuple[str, ...] = ()
    """Classes, label 0 first; default: the values found in the masks, if there are few. `background cell` (values 0 and
    1), `background=0 myelin=127,128 axon=192-255`, `background=0 cell=1-` (all values from 1: numbered instances),
    or `sky=#87ceeb road=#804080` for color masks."""
    ignore: tuple[str, ...] = ()
    """Values, ranges or colors to ignore in loss and scores (`255`, `11`, `#ffffff`)."""
    unknown: Unknown = "refuse"
    """What to do with values in no class: refuse them, ignore these pixels, or use the class with the nearest value."""
    colors: tuple[str, ...] = ()
    """Display colors of the classes (`#rrggbb`); default: the masks' own, or color-blind safe ones."""

    def validate(self) -> None:
        """Raises UserError if a class, a value or a color can't be parsed or is listed twice."""
        if self.name:
            MaskRule(self.name)
        parse_classes(self.classes, self.ignore, self.colors)


def synthetic_masks_config(classes: tuple[ClassInfo, ...]) -> MasksConfig:
    """The settings for reading the palette masks of a synthetic set."""
    colors = tuple(f"#{pack_color(info.color):06x}" for info in classes)
    return MasksConfig(classes=tuple(info.name for info in classes), colors=colors)
