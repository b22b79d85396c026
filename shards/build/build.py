"""Building a shard set: plan, shards, manifest.

The sources of a split are cut into runs, one per shard, by the recipe alone; so a shard is the same whoever builds
it, and processes, array tasks and builders after a crash share the work shard by shard. A shard is three files: the
tar, its index, and last a note in `.building/` with its checksums and sums. When all notes are there, the manifest is
written from them and the notes go.
"""

import json
import multiprocessing
import multiprocessing.connection
import os
import random
import re
import shutil
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segdist.core.errors import UserError
from segdist.core.files import write_json
from segdist.core.parsing import from_dict
from segdist.core.terminal import Progress, say
from shards.build.plan import NOTES, Plan, make_plan
from shards.build.recipe import MakeShardsConfig, differences
from shards.build.source_check import changed_sources
from shards.build.sources import Source, UnknownLabels
from shards.build.writer import ShardNote, Unit, build_shard
from shards.images.masks import unknown_message
from shards.manifest import FORMAT_VERSION, MANIFEST, SPLITS, Manifest, ShardInfo, combined_statistics, read_manifest
from shards.manifest import write_manifest as save_manifest

RECIPE = "recipe.json"

_SET_FILES = re.compile(r"(train|val)-\d{5}(\.tar|\.index\.npy)|\..*\.tmp|manifest\.json|contact_sheet\.png")


class UnwritableShard(UserError):
    """The disk is full or read-only; what is finished stays."""


def make_shards(config: MakeShardsConfig, *, quiet: bool = False) -> Manifest | None:
    """Build what is missing of the set; returns the manifest, or None where other tasks' shards are still missing.

    Raises:
        UserError: bad sources or settings, another recipe in the folder, a full disk.
    """
    plan = make_plan(config)
    folder = config.folder
    if config.overwrite:
        _remove_set(folder)
    if _finished(plan, quiet):
        manifest = read_manifest(folder)
        if not quiet:
            say(f"{folder}: finished already, with this recipe")
        return manifest
    fresh = _claim_folder(plan)
    try:
        if not config.finish:
            task, tasks = config.task_share()
            _build_units(plan, plan.units[task::tasks], quiet)
        return None if config.task else _finish(plan, quiet)
    except UnwritableShard:
        raise
    except UserError:
        # The sources or settings must change, and with them the recipe: what stands here would only be in the way.
        if fresh and not config.task:
            _remove_set(folder)
        raise


def _finished(plan: Plan, quiet: bool) -> bool:
    """A manifest of this recipe is there. Raises UserError where the folder holds another recipe."""
    folder = plan.config.folder
    if (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
        _refuse_other_recipe(plan, manifest.recipe, "a shard set")
        _refuse_changed_sources(plan, manifest, quiet)
        return True
    note = folder / NOTES / RECIPE
    if note.exists():
        _refuse_other_recipe(plan, json.loads(note.read_text()), "an unfinished set")
    return False


def _refuse_other_recipe(plan: Plan, found: dict[str, Any], what: str) -> None:
    if lines := list(differences(found, plan.recipe)):
        raise UserError(
            f"{plan.config.folder} holds {what} of another recipe (there → now):\n  " + "\n  ".join(lines[:20]) + "\n"
            "choose another --name, or throw it away with --overwrite"
        )


def _refuse_changed_sources(plan: Plan, manifest: Manifest, quiet: bool) -> None:
    """Files that were changed in place, without a change of name or size."""
    contents = [manifest.sources[source.split][source.number].content for source in plan.sources]
    finished = (plan.config.folder / MANIFEST).stat().st_mtime_ns
    if changed := changed_sources(plan.sources, contents, finished, plan.config, plan.target.channels, quiet=quiet):
        shown = [f"{source.image} or its mask {source.mask}" for source in changed]
        raise UserError(
            f"{plan.config.folder} was cut from other pixels or labels than these files hold now:\n  "
            + "\n  ".join(shown[:10])
            + ("\n  …" if len(shown) > 10 else "")
            + "\nbuild the set again with --overwrite, or choose another --name to keep the old one as well"
        )


def _remove_set(folder: Path) -> None:
    """Throw a set away: the manifest first, so that what is half gone is never taken for a set."""
    if not folder.exists():
        return
    if not (folder / MANIFEST).exists() and not (folder / NOTES).exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: --overwrite, but this is no shard set; choose another --name or empty the folder")
    (folder / MANIFEST).unlink(missing_ok=True)
    for path in folder.iterdir():
        if _SET_FILES.fullmatch(path.name):
            path.unlink(missing_ok=True)
    for name in ("source", NOTES):
        shutil.rmtree(folder / name, ignore_errors=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _claim_folder(plan: Plan) -> bool:
    """Note the recipe in the folder, so that nobody goes on with another one; True if nothing was there."""
    folder = plan.config.folder
    known = plan.config.overwrite or (folder / NOTES).exists()  # what --overwrite leaves is the user's
    if folder.exists() and not known and any(folder.iterdir()):
        raise UserError(f"{folder}: not empty, and no shard set; choose another --name or empty the folder")
    fresh = not (folder / NOTES).exists()
    with _writing(folder, "the recipe"):
        write_json(folder / NOTES / RECIPE, plan.recipe)
    return fresh


def _build_units(plan: Plan, units: Iterable[Unit], quiet: bool) -> None:
    """Build the units that aren't whole yet; problems with masks are collected and told together."""
    units = list(units)
    missing = [unit for unit in units if not _is_whole(plan, unit)]
    # Two builders of one set share the work when they don't walk through it in step.
    random.shuffle(missing)
    total = sum(len(unit.sources) for unit in units)
    done = total - sum(len(unit.sources) for unit in missing)
    label = f"building {plan.config.folder}"
    unknown: dict[str, Counter[str]] = {}
    with Progress(label, total=total, unit="images", quiet=quiet, done=done) as progress:
        for unit, problem in _run(plan, missing):
            if problem is not None:
                unknown[str(problem.path)] = problem.counts
            progress.advance(len(unit.sources))
    if unknown:
        raise UserError(unknown_message(dict(sorted(unknown.items())), plan.config.masks))


def _is_whole(plan: Plan, unit: Unit) -> bool:
    """The unit's note is there (or the whole set's manifest), its tar has the size that the note says, and its sources
    are still those that it was cut from."""
    if (plan.config.folder / MANIFEST).exists():
        return True
    note, written = _read_note(plan.note_path(unit))
    if note is None or len(note.contents) != len(unit.sources):
        return False
    if unit.split == "test":
        whole = all(source.drawn < 0 or source.image.exists() for source in unit.sources)
    else:
        tar = plan.config.folder / f"{unit.name}.tar"
        whole = tar.exists() and tar.stat().st_size == note.bytes and tar.with_suffix(".index.npy").exists()
    return whole and not changed_sources(unit.sources, note.contents, written, plan.config, plan.target.channels)


def _read_note(path: Path) -> tuple[ShardNote | None, int]:
    """A shard's note, and when it was written (nanoseconds)."""
    try:
        with path.open() as file:
            return from_dict(ShardNote, json.load(file), str(path)), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None, 0


def _run(plan: Plan, units: list[Unit]) -> Iterator[tuple[Unit, UnknownLabels | None]]:
    """Build `units` here or in worker processes, in any order."""
    processes = min(plan.config.processes or len(os.sched_getaffinity(0)), len(units))
    if processes <= 1:
        for unit in units:
            yield unit, _build_unit(plan, unit)
        return
    # Spawned: a fork of a process with threads (the progress bar's) can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_die_with_parent) as pool:
        running = {}
        try:
            for unit in units:
                running[pool.submit(_build_unit, plan.without_sources(), unit)] = unit
            for future in as_completed(running):
                yield running[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _build_unit(plan: Plan, unit: Unit) -> UnknownLabels | None:
    """Build one unit, unless another builder has done so by now."""
    if _is_whole(plan, unit):
        return None
    try:
        with _writing(plan.config.folder, unit.name):
            build_shard(unit, plan.target, plan.note_path(unit))
    except UnknownLabels as error:
        return error
    return None


@contextmanager
def _writing(folder: Path, what: str) -> Iterator[None]:
    """Turn what a full or read-only disk raises into a message."""
    try:
        yield
    except OSError as error:
        raise UnwritableShard(
            f"{folder}: {what} can't be written: {error.strerror or error}; what is finished stays. "
            "Make room (or choose another --root) and run the same command again: it goes on from there"
        ) from None


def _die_with_parent() -> None:
    """End this worker when its parent is gone, however it died; a killed parent can't tell its workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _finish(plan: Plan, quiet: bool) -> Manifest:
    """Write the manifest from the notes, then remove them."""
    config = plan.config
    notes = {unit: _read_note(plan.note_path(unit))[0] if _is_whole(plan, unit) else None for unit in plan.units}
    # Another builder may have been faster. It removes the notes after the manifest is there, so look in this order.
    if _finished(plan, quiet):
        shutil.rmtree(config.folder / NOTES, ignore_errors=True)
        return read_manifest(config.folder)
    if missing := [unit.name for unit, note in notes.items() if note is None]:
        shown = ", ".join(missing[:10]) + (", …" if len(missing) > 10 else "")
        raise UserError(
            f"{config.folder}: {len(missing)} of {len(plan.units)} parts are missing ({shown}); "
            "run their tasks again, or make-shards without --task, then --finish"
        )
    whole = [(unit, note) for unit, note in notes.items() if note is not None]
    _refuse_copies(whole)
    manifest = _manifest(plan, whole)
    with _writing(config.folder, MANIFEST):
        save_manifest(config.folder, manifest)
    shutil.rmtree(config.folder / NOTES, ignore_errors=True)
    return manifest


def _refuse_copies(notes: list[tuple[Unit, ShardNote]]) -> None:
    """The same image in two splits, in whatever files, makes scores worthless."""
    seen: dict[str, Source] = {}
    problems = []
    for unit, note in notes:
        for source, digest in zip(unit.sources, note.digests, strict=True):
            other = seen.setdefault(digest, source) if digest else source
            if other.split != source.split:
                problems.append(f"{other.image} ({other.split}) and {source.image} ({source.split})")
    if problems:
        raise UserError(
            "the same image in two splits, which would make the scores worthless:\n  "
            + "\n  ".join(problems[:10])
            + "\n"
            "take the copies away, or keep them in one split with --split.group or a list"
        )


def _manifest(plan: Plan, notes: list[tuple[Unit, ShardNote]]) -> Manifest:
    target, config = plan.target, plan.config
    train = [note for unit, note in notes if unit.split == "train"]
    samples = sum(note.samples for note in train)
    if not samples:
        raise UserError(
            f"{config.folder}: no patch was kept, all hold nothing but background (label 0); "
            "check --masks.classes, or keep them with --patches.no-drop-background"
        )
    mean, std = combined_statistics(
        [sum(column) for column in zip(*(note.sums for note in train), strict=True)],
        [sum(column) for column in zip(*(note.squares for note in train), strict=True)],
        samples * config.patches.size**2,
    )
    return Manifest(
        format_version=FORMAT_VERSION,
        recipe=plan.recipe,
        classes=target.classes,
        patch=config.patches.size,
        channels=target.channels,
        dtype=target.dtype,
        encoding=config.encoding,
        shards=tuple(
            ShardInfo(f"{unit.name}.tar", unit.split, note.samples, note.bytes, note.sha256, note.index_sha256)
            for unit, note in notes
            if unit.split != "test"
        ),
        mean=mean,
        std=std,
        pixels=tuple(sum(column) for column in zip(*(note.pixels for note in train), strict=True)),
        ignored_pixels=sum(note.ignored for note in train),
        sources={
            split: tuple(
                source.pair(config.folder, content)
                for unit, note in notes
                if unit.split == split
                for source, content in zip(unit.sources, note.contents, strict=True)
            )
            for split in SPLITS
        },
    )
