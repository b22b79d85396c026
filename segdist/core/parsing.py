"""Frozen dataclasses from plain dictionaries (TOML, JSON) and back, with errors that name the key.

Every job's config is a tree of frozen dataclasses; sections nest one level (`[model]`, `[optim]`, …). The same
functions read a user's TOML file, a preset, a manifest's recipe and a run's resolved config.
"""

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_type_hints

from segdist.core.errors import UserError
from segdist.core.files import read_text, write_json
from segdist.core.formats import stamped, unstamped
from segdist.core.json_values import JsonObject

Config = TypeVar("Config")

SETTINGS_VERSION = 1


def from_dict(cls: type[Config], values: JsonObject, origin: str) -> Config:
    """Build `cls` from `values`; missing keys keep their defaults.

    Raises:
        UserError: an unknown key or a value of the wrong type; names `origin` and the dotted key.
    """
    _refuse_unknown_keys(cls, values, origin, prefix="")
    # Slow to import, and only needed to read dictionaries.
    from pydantic import TypeAdapter, ValidationError

    try:
        # Strict JSON mode: "3" is not an int and true is not a number, but a list is a tuple and a string is a path.
        return TypeAdapter(cls).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            # pydantic appends the branches of a union to the location; show only the key that the user wrote.
            key = ".".join(str(part) for part in item["loc"] if isinstance(part, int) or part.isidentifier())
            lines.append(f"  {key}: {item['msg']}, got {item['input']!r}")
        raise UserError(f"{origin}: wrong value\n" + "\n".join(dict.fromkeys(lines))) from None


def to_dict(config: Any) -> JsonObject:  # Any: a dataclass, for which typing has no public name
    """The inverse of `from_dict`, with JSON types only (paths become strings, tuples lists)."""
    return cast(JsonObject, json.loads(json.dumps(dataclasses.asdict(config), default=_path_to_text)))


def read_file(path: Path) -> JsonObject:
    """The tables of a TOML file, or of a JSON file (by its suffix), as a dictionary.

    Raises:
        UserError: the file can't be read or isn't valid.
    """
    return parse_table(read_text(path), str(path), "JSON" if path.suffix == ".json" else "TOML")


def parse_table(text: str, origin: str, kind: Literal["JSON", "TOML"] = "TOML") -> JsonObject:
    """The tables in `text`; `origin` names it in errors, which are those of `read_file`."""
    try:
        values = json.loads(text) if kind == "JSON" else tomllib.loads(text)
    except ValueError as error:
        raise UserError(f"{origin}: not valid {kind}: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{origin}: must hold a table of settings")
    return values


def read_settings(path: Path) -> JsonObject:
    """As `read_file`; settings from `write_settings` have a format version, a user's file needs none.

    Raises:
        UserError: also if a newer segdist wrote them.
    """
    return unstamped(read_file(path), SETTINGS_VERSION, str(path))


def write_settings(path: Path, values: JsonObject) -> None:
    """Write settings for another job, as JSON with a format version."""
    write_json(path, stamped(values, SETTINGS_VERSION))


def merge(base: JsonObject, over: JsonObject) -> JsonObject:
    """`base` updated with `over`; sections are merged key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def option_value(arguments: list[str], flag: str) -> str | None:
    """The value of `--flag VALUE` or `--flag=VALUE` (the last one counts), before anything else is parsed."""
    value = None
    for index, argument in enumerate(arguments):
        if argument == flag:
            if index + 1 == len(arguments):
                raise UserError(f"{flag} needs a value")
            value = arguments[index + 1]
        elif argument.startswith(f"{flag}="):
            value = argument.removeprefix(f"{flag}=")
    return value


def near(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The hint for a name not among the `known`: the one that was probably meant, or a list of all."""
    close = difflib.get_close_matches(name, known := list(known), n=1)
    return f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(sorted(known))}"


def _refuse_unknown_keys(cls: type, values: JsonObject, origin: str, prefix: str) -> None:
    hints = get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{origin}: unknown key {prefix}{key}; {near(key, known, prefix)}")
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, dict):
            _refuse_unknown_keys(cast(type, hints[key]), value, origin, f"{prefix}{key}.")


def _path_to_text(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a config holds a {type(value).__name__}, which JSON can't represent")
