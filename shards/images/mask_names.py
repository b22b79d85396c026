"""Derive the name of a mask from that of its image: the rules of `--masks.name`.

Names are paths in the folder of the images, or of the masks, without suffix: `rat1/a` for `rat1/a.png`. A rule is

- `{stem}_mask`: a template with {stem}, the last component of the image's name, or
- `(.*)_leftImg8bit -> \\1_gtFine_labelIds`: a regular expression that matches the whole last component of the image's
  name, and the mask's name with its groups; with a slash in the expression, both are full names including folders, or
- `{numbers}`: image and mask have the same numbers in their names (`img_7`, `label_007`). Numbers that all images
  share don't count, nor do those that all masks share.
"""

import posixpath
import re
from dataclasses import dataclass
from functools import cached_property

from segdist.core.errors import UserError

NUMBERS = "{numbers}"
EXACT = "{stem}"
_ARROW = re.compile(r" (?:->|→) |->|→")


@dataclass(frozen=True)
class MaskRule:
    """One such rule. Raises UserError if the text is invalid."""

    text: str

    def __post_init__(self) -> None:
        left, right = self._parts
        if right is None:
            if self.text != NUMBERS and EXACT not in self.text:
                raise UserError(
                    f"--masks.name {self.text!r}: needs {{stem}}, the image's name ('{{stem}}_mask'), or a regular "
                    r"expression and the mask's name ('Img_(\d+) -> Mask_\1'); without it, the rule is searched for"
                )
            return
        try:
            # Detect wrong groups in the mask's name here, not at the first image.
            re.compile(f"(?:{left})|").sub(right, "")
        except (re.error, IndexError) as error:
            raise UserError(
                f"--masks.name {self.text!r}: not a regular expression, or no such group ({error})"
            ) from None

    @cached_property
    def _parts(self) -> tuple[str, str | None]:
        parts = _ARROW.split(self.text, maxsplit=1)
        return (parts[0], parts[1]) if len(parts) == 2 else (self.text, None)

    @cached_property
    def _expression(self) -> re.Pattern[str]:
        return re.compile(rf"\A(?:{self._parts[0]})\Z")

    def mask_of(self, image: str) -> str | None:
        """The mask name for the image name `image`; None if the expression doesn't match, or for {numbers}."""
        if self.text == NUMBERS:
            return None
        folder, stem = posixpath.split(image)
        left, right = self._parts
        if right is None:
            return posixpath.normpath(posixpath.join(folder, self.text.replace(EXACT, stem)))
        whole = "/" in left
        # Not `fullmatch` and `expand`, which would parse the text for every image.
        name, found = self._expression.subn(right, image if whole else stem)
        if not found:
            return None
        return posixpath.normpath(name if whole else posixpath.join(folder, name))


def exchange(image_prefix: str, image_suffix: str, mask_prefix: str, mask_suffix: str) -> str:
    """The rule that replaces the text before and after a part that image and mask share."""
    while image_prefix and mask_prefix and image_prefix[-1] == mask_prefix[-1]:
        image_prefix, mask_prefix = image_prefix[:-1], mask_prefix[:-1]
    while image_suffix and mask_suffix and image_suffix[0] == mask_suffix[0]:
        image_suffix, mask_suffix = image_suffix[1:], mask_suffix[1:]
    if not image_prefix and not image_suffix:
        return f"{mask_prefix}{EXACT}{mask_suffix}"
    group = r"\g<1>" if mask_suffix[:1].isdigit() else r"\1"
    right = f"{_literal(mask_prefix)}{group}{_literal(mask_suffix)}"
    return f"{re.escape(image_prefix)}(.*){re.escape(image_suffix)} -> {right}"


def _literal(text: str) -> str:
    return text.replace("\\", "\\\\")
