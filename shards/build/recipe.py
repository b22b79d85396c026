"""A set's recipe: the settings that determine its contents, used to tell sets apart."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from os.path import abspath
from pathlib import Path

from segdist.core.choice import Choice, settings_of
from segdist.core.files import size_and_time
from segdist.core.json_values import JsonObject
from segdist.core.parsing import merge, to_dict
from shards.build.choices import EARLIER
from shards.build.config import MakeShardsConfig
from shards.build.decide import CHOICES
from shards.images.mask_names import EXACT

PATHS = ("folder", "csv", "train_list", "validation_list", "test_list")
"""Settings in a recipe that are paths."""
VERSION = "recipe_version"
RECIPE_VERSION = 2
"""Increases when the same settings give different bytes. 2: patch positions have their own key."""


def recipe_of(config: MakeShardsConfig, source_files: str, choices: Sequence[Choice] = ()) -> JsonObject:
    """The settings that determine the set's contents: all except where and how it is built.

    `choices` are the settings that were chosen automatically. `source_files` identifies the user's files
    (`digest_of_files`); empty for synthetic images.
    """
    values = to_dict(config)
    for name in ("name", "root", "processes", "task", "finish", "overwrite"):
        del values[name]
    masks = config.mask_settings
    values["masks"] = to_dict(replace(masks, name=masks.name or EXACT))  # an empty rule means equal names
    if config.own_data:
        del values["synthetic"]
    made = [asdict(choice) for choice in choices]
    return {VERSION: RECIPE_VERSION, "source_files": source_files, **values, CHOICES: made}


def digest_of_files(files: list[tuple[str, Path]]) -> str:
    """A cheap fingerprint of (split, file) pairs by names and sizes, which changes with the collection.

    `shards.build.changes.changed_sources` finds files that changed but kept their size.
    """
    digest = hashlib.sha256()
    for split, path in files:
        digest.update(json.dumps([split, path.name, size_and_time(path)[0]]).encode())
    return digest.hexdigest()


def other_version(old: JsonObject) -> str:
    """The version of segdist behind a recipe that gives different bytes; empty for recipes of this version."""
    version = old.get(VERSION, 0)
    if version == RECIPE_VERSION:
        return ""
    who = "an earlier" if version < RECIPE_VERSION else "a later"
    return f"{who} segdist (recipe version {version}; this version's is {RECIPE_VERSION})"


def differences(old: JsonObject, new: JsonObject) -> list[str]:
    """Lines `key: old → new` for all settings that differ between two recipes; equivalent paths are equal.

    A setting that `old` lacks is newer than that recipe and takes the value that matches the behavior of the time.
    Versions are not compared, nor is whether a value was set or chosen.
    """
    then = merge(to_dict(MakeShardsConfig()), settings_of(EARLIER))
    defaults = {key: value for key, value in then.items() if key in new}
    old, new = (
        {key: value for key, value in each.items() if key not in (VERSION, CHOICES)}
        for each in (merge(defaults, old), new)
    )
    return list(_differences(old, new, ""))


def _differences(old: JsonObject, new: JsonObject, prefix: str) -> Iterator[str]:
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{prefix}{key}.")
        elif before != after and not (key in PATHS and before and after and abspath(before) == abspath(after)):
            yield f"{prefix}{key}: {before!r} → {after!r}"
