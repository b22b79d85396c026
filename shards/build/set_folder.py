"""The folder of a shard set: whether this recipe may use it, what is there, and what is deleted."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from segdist.core.errors import UserError
from segdist.core.files import write_json
from segdist.core.formats import VERSION_KEY, read_version, stamped
from segdist.core.json_values import JsonObject
from segdist.core.owner import owned
from segdist.core.parsing import merge
from segdist.core.paths import BUILDING, CONTACT_SHEET, INDEX_SUFFIX, MANIFEST, OWNERS, RECIPE, SOURCE
from shards.build.changes import changed_sources
from shards.build.recipe import differences, other_version
from shards.build.work import Work
from shards.manifest import Manifest, read_manifest

BUILDER = "segdist make-shards"
"""The name under which builders own the folder."""
RECIPE_FORMAT = 1
"""Version of `recipe.json`."""

_SET_FILES = re.compile(rf"(train|val)-\d{{5}}(\.tar|{re.escape(INDEX_SUFFIX)})|\..*\.tmp|{re.escape(CONTACT_SHEET)}")


class UnwritableShard(UserError):
    """The disk is full or read-only; finished shards are kept."""


def is_finished(work: Work, *, quiet: bool) -> bool:
    """True if a manifest with this recipe exists. Raises UserError if the folder holds a different recipe."""
    folder = work.config.folder
    if (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
        _refuse_other_recipe(work, manifest.recipe, "a shard set")
        _refuse_changed_sources(work, manifest, quiet)
        return True
    if (recipe := _read_recipe(folder)) is not None:
        _refuse_other_recipe(work, recipe, "an unfinished set")
        if began := other_version(recipe):
            raise UserError(
                f"{folder} holds an unfinished set begun by {began}, which cuts other patches from the same settings; "
                "finish it with that version, choose another --name, or delete it with --overwrite"
            )
    return False


def _read_recipe(folder: Path) -> JsonObject | None:
    """The recipe of the unfinished set in `folder`; None if there is none."""
    path = folder / BUILDING / RECIPE
    try:
        recipe = json.loads(path.read_bytes().decode())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); delete the set with --overwrite") from None
    read_version(recipe, RECIPE_FORMAT, str(path))
    return {key: value for key, value in recipe.items() if key != VERSION_KEY}


def _refuse_other_recipe(work: Work, found: JsonObject, what: str) -> None:
    if work.recipe["images"]["orientation"] == "auto":
        found = merge(found, {"images": {"orientation": "auto"}})  # the stored value is the one that was detected
    if lines := differences(found, work.recipe):
        raise UserError(
            f"{work.config.folder} holds {what} with a different recipe (there → now):\n  "
            + "\n  ".join(lines[:20])
            + "\n"
            "choose another --name, or delete it with --overwrite"
        )


def _refuse_changed_sources(work: Work, manifest: Manifest, quiet: bool) -> None:
    """Refuse files that were edited in place, with the same name and size."""
    contents = [manifest.sources[source.split][source.number].content for source in work.sources]
    finished = (work.config.folder / MANIFEST).stat().st_mtime_ns
    if changed := changed_sources(work.sources, contents, finished, work.config, work.target.channels, quiet=quiet):
        shown = [f"{source.image} or its mask {source.mask}" for source in changed]
        raise UserError(
            f"{work.config.folder} was built from different pixels or labels than these files hold now:\n  "
            + "\n  ".join(shown[:10])
            + ("\n  …" if len(shown) > 10 else "")
            + "\nrebuild the set with --overwrite, or choose another --name to keep the old one too"
        )


def remove_set(folder: Path) -> None:
    """Delete a set, manifest first, so that a half-deleted set is never mistaken for a complete one."""
    if not folder.exists():
        return
    if not (folder / MANIFEST).exists() and not (folder / BUILDING).exists() and _others(folder):
        raise UserError(
            f"{folder}: --overwrite, but this is not a shard set; choose another --name or empty the folder"
        )
    (folder / MANIFEST).unlink(missing_ok=True)
    for path in folder.iterdir():
        if _SET_FILES.fullmatch(path.name):
            path.unlink(missing_ok=True)
    for name in (SOURCE, BUILDING):
        shutil.rmtree(folder / name, ignore_errors=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def remove_failed(work: Work) -> None:
    """Delete what a failed build left, unless another builder is still at work there."""
    folder = work.config.folder
    with suppress(UserError), owned(folder, BUILDER):
        recipe = _read_recipe(folder)
        if not (folder / MANIFEST).exists() and recipe is not None and not differences(recipe, work.recipe):
            remove_set(folder)
    with suppress(OSError):
        folder.rmdir()  # fails if anything is left


def _others(folder: Path) -> bool:
    """True if the folder holds anything besides the ownership records."""
    return any(path.name != OWNERS for path in folder.iterdir())


def claim_folder(work: Work) -> bool:
    """Record the recipe in the folder, so that no one continues with a different one; True if nothing was there."""
    folder = work.config.folder
    # Other builders may start or finish at any moment: what they add comes after .building/, which goes only once there
    # is a manifest. So look in this order.
    others = folder.exists() and _others(folder)
    fresh = not ((folder / BUILDING).exists() or (folder / MANIFEST).exists())
    if others and fresh and not work.config.overwrite:  # which leaves only the user's files
        raise UserError(f"{folder}: not empty, and not a shard set; choose another --name or empty the folder")
    with writing(folder, "the recipe"):
        write_json(folder / BUILDING / RECIPE, stamped(work.recipe, RECIPE_FORMAT))
    return fresh


@contextmanager
def writing(folder: Path, what: str) -> Iterator[None]:
    """Turn the errors of a full or read-only disk into a UserError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, (FileNotFoundError, FileExistsError)) and (folder / MANIFEST).exists():
            return  # another builder has finished the set, and removed .building/ just when this one wrote there
        raise UnwritableShard(
            f"{folder}: {what} can't be written: {error.strerror or error}; finished work is kept. "
            "Make room (or choose another --root) and run the same command again: it resumes from there"
        ) from None
