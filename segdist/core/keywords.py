"""A job's config from the keywords of a Python call, read as strictly as a TOML file, with a few conveniences.

Accepts a `Path` as a path, a dataclass as a section, a single value as a list of one, and any object with a `folder` (a
shard set, a run) as its name.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar, cast, get_origin, get_type_hints

from segdist.core.errors import UserError
from segdist.core.json_values import JsonObject, JsonValue
from segdist.core.parsing import from_dict, to_dict
from segdist.core.ranges import check_ranges

Config = TypeVar("Config")


def from_keywords(cls: type[Config], values: Mapping[str, object], call: str) -> Config:
    """Build and check a config.

    Args:
        values: keyword → value, from `plain` or directly from the caller.
        call: the called function, for messages: `segdist.train()`.

    Raises:
        UserError: an unknown keyword, a wrong type or value, an invalid combination.
    """
    config = from_dict(cls, _with_lists(cls, plain(values, call)), call)
    check_ranges(config, origin=call)
    validate = getattr(config, "validate", None)
    if validate is not None:
        validate()
    return config


def plain(values: Mapping[str, object], call: str) -> JsonObject:
    """The same values as JSON types: strings, numbers, lists and dictionaries.

    Raises:
        UserError: a value of another type; names its keyword.
    """
    return {key: _plain(value, f"{call}: {key}") for key, value in values.items()}


def _plain(value: object, where: str) -> JsonValue:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and not hasattr(value, "folder"):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if isinstance(folder := getattr(value, "folder", None), Path):
        return str(folder)
    if callable(item := getattr(value, "item", None)) and getattr(value, "ndim", None) == 0:  # a NumPy scalar
        return _plain(item(), where)
    raise UserError(f"{where} is a {type(value).__name__}; give text, a number, a list, a table or a path")


def _with_lists(cls: type, values: JsonObject) -> JsonObject:
    """`values`, with single values wrapped in a list where the setting takes several."""
    hints = get_type_hints(cls)
    found = {}
    for key, value in values.items():
        hint = hints.get(key)
        if dataclasses.is_dataclass(hint) and isinstance(value, dict):
            value = _with_lists(cast(type, hint), value)
        elif get_origin(hint) is tuple and isinstance(value, str | int | float):
            value = [value]
        found[key] = value
    return found
