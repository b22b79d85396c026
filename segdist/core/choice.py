"""Automatic choices of a job for settings left open: the setting, its value, and the reason."""

from collections.abc import Iterable
from dataclasses import dataclass

from segdist.core.json_values import JsonObject, JsonValue


@dataclass(frozen=True)
class Choice:
    """One automatically chosen setting."""

    setting: str
    """Key of the job's config, with dots: `model.width`."""
    value: JsonValue
    """Stored in files."""
    reason: str

    def line(self) -> str:
        """`model.width = 16: why`."""
        return f"{self.setting} = {shown(self.value)}: {self.reason}"


def settings_of(choices: Iterable[Choice]) -> JsonObject:
    """The choices as a table of settings, as read from a TOML file."""
    table: JsonObject = {}
    for choice in choices:
        *sections, key = choice.setting.split(".")
        inside = table
        for section in sections:
            inside = inside.setdefault(section, {})
        inside[key] = choice.value
    return table


def in_force(choices: Iterable[Choice], config: JsonObject) -> list[Choice]:
    """The choices whose values the config has; the user has overridden the others.

    Args:
        config: as returned by `segdist.core.parsing.to_dict`.
    """
    return [choice for choice in choices if _value(config, choice.setting) == choice.value]


def shown(value: object) -> str:
    """A value as written on the command line."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return " ".join(shown(item) for item in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _value(config: JsonObject, setting: str) -> JsonValue:
    value: JsonValue = config
    for key in setting.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value
