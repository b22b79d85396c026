"""Fill in open settings from facts about images and masks: once per set, then stored with it."""

import json
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path

from segdist.core.choice import Choice
from segdist.core.errors import UserError
from segdist.core.paths import BUILDING, MANIFEST, RECIPE
from shards.build.choices import EARLIER
from shards.build.config import MakeShardsConfig

CHOICES = "choices"
"""Key of a recipe."""
OPEN: dict[str, object] = {
    "patches.size": 0,
    "patches.per_image": 0,
    "patches.balance": None,
    "patches.scale": 0,
    "patches.channels": None,
    "split.validation": None,
    "split.test": None,
    "images.upright": "auto",
    "masks.classes": (),
}
"""Settings that can be left open, and their value if they are."""


class Decisions:
    """A config being completed, and the choices that complete it."""

    def __init__(self, config: MakeShardsConfig) -> None:
        """Adopts the choices of the set in the config's folder, if there is one."""
        self.config = config
        self.choices: list[Choice] = []
        known = choices_of_set(config.folder) if not config.overwrite else None
        self.take(known or ())

    def take(self, choices: Iterable[Choice]) -> None:
        """Apply the choices whose settings are still open."""
        for choice in choices:
            if self.is_open(choice.setting):
                section, _, key = choice.setting.partition(".")
                value = tuple(choice.value) if isinstance(choice.value, list) else choice.value
                changed = replace(getattr(self.config, section), **{key: value})
                self.config = replace(self.config, **{section: changed})
                self.choices.append(choice)

    def is_open(self, *settings: str) -> bool:
        """True if one of the settings is left open."""
        return any(self._value(setting) == OPEN[setting] for setting in settings)

    def _value(self, setting: str) -> object:
        section, _, key = setting.partition(".")
        return getattr(getattr(self.config, section), key)


def choices_of_set(folder: Path) -> tuple[Choice, ...] | None:
    """The choices stored with a finished or unfinished set; None if there is no set.

    Sets older than automatic choices were built with the defaults of their time.

    Raises:
        UserError: the choices can't be parsed.
    """
    for path in (folder / MANIFEST, folder / BUILDING / RECIPE):
        try:
            values = json.loads(path.read_bytes().decode())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            continue  # whoever reads the rest reports the damage
        recipe = values.get("recipe", values) if isinstance(values, dict) else {}
        if not isinstance(recipe, dict) or CHOICES not in recipe:
            return EARLIER
        names = {item.name for item in fields(Choice)}
        try:
            found = [Choice(**{key: value for key, value in each.items() if key in names}) for each in recipe[CHOICES]]
        except (TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged: its choices can't be read ({error})") from None
        if any(choice.setting not in OPEN for choice in found):
            raise UserError(f"{path}: made by a newer segdist, whose choices this version doesn't know; update segdist")
        return tuple(found)
    return None
