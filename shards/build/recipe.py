"""The part of the settings that decides a set's content: its recipe, by which two sets are told apart."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from os.path import abspath
from pathlib import Path
from typing import Any

from segdist.core.choice import Choice, settings_of
from segdist.core.files import size_and_time
from segdist.core.parsing import merge, to_dict
from shards.build.choices import EARLIER
from shards.build.config import MakeShardsConfig
from shards.build.decide import CHOICES
from shards.images.mask_names import EXACT

PATHS = ("folder", "csv", "train_list", "validation_list", "test_list")
"""Settings of a recipe that are paths."""
VERSION = "recipe_version"
RECIPE_VERSION = 2
"""Goes up when the same settings give other bytes. 2: the positions of patches have a key of their own."""


def recipe_of(config: MakeShardsConfig, source_files: str, choices: Sequence[Choice] = ()) -> dict[str, Any]:
    """What decides the content of the set: all settings but those of where and how it is built.

    `choices` are those among the settings that nobody set. `source_files` identifies the user's files
    (`digest_of_files`); empty for drawn images.
    """
    values = to_dict(config)
    for name in ("name", "root", "processes", "task", "finish", "overwrite"):
        del values[name]
    masks = config.mask_settings
    values["masks"] = to_dict(replace(masks, name=masks.name or EXACT))  # a name that isn't needed is the plain one
    if config.own_data:
        del values["synthetic"]
    made = [asdict(choice) for choice in choices]
    return {VERSION: RECIPE_VERSION, "source_files": source_files, **values, CHOICES: made}


def digest_of_files(files: list[tuple[str, Path]]) -> str:
    """A fingerprint of (split, file) pairs by names and sizes: cheap, and a changed collection changes it.

    What changes without changing in size is found by `shards.build.changes.changed_sources`.
    """
    digest = hashlib.sha256()
    for split, path in files:
        digest.update(json.dumps([split, path.name, size_and_time(path)[0]]).encode())
    return digest.hexdigest()


def other_version(old: dict[str, Any]) -> str:
    """Who made a recipe under which the same settings give other bytes; empty for those of this version."""
    version = old.get(VERSION, 0)
    if version == RECIPE_VERSION:
        return ""
    who = "an earlier" if version < RECIPE_VERSION else "a later"
    return f"{who} segdist (recipe version {version}, this program's is {RECIPE_VERSION})"


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lines `key: old → new` for all settings that differ between two recipes; a path may be written in several ways.

    A setting that `old` lacks is younger than that recipe and counts as what was done then. Versions are not compared,
    nor who made a choice.
    """
    then = merge(to_dict(MakeShardsConfig()), settings_of(EARLIER))
    defaults = {key: value for key, value in then.items() if key in new}
    old, new = (
        {key: value for key, value in each.items() if key not in (VERSION, CHOICES)}
        for each in (merge(defaults, old), new)
    )
    return list(_differences(old, new, ""))


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str) -> Iterator[str]:
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{prefix}{key}.")
        elif before != after and not (key in PATHS and before and after and abspath(before) == abspath(after)):
            yield f"{prefix}{key}: {before!r} → {after!r}"
