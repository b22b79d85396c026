"""Build a shard set: plan, shards, manifest.

The recipe alone divides a split's sources into runs, one per shard. So a shard's bytes don't depend on who builds it,
and processes, array tasks and restarted builders can share the work shard by shard. A shard is three files: the tar,
its index, and finally a note in `.building/` with its checksums and sums. Once all notes exist, the manifest is written
from them and the notes are removed.
"""

import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import shutil
import sys
import threading
import types
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from pathlib import Path

from segdist.core.errors import UserError
from segdist.core.files import remove_leftovers
from segdist.core.formats import VERSION_KEY, read_version
from segdist.core.machine import usable_cores
from segdist.core.owner import owned
from segdist.core.parsing import from_dict, merge
from segdist.core.paths import BUILDING, INDEX_SUFFIX, MANIFEST, SOURCE
from segdist.core.terminal import Progress, say
from shards.build.changes import changed_sources
from shards.build.config import MakeShardsConfig
from shards.build.mask_check import check_masks
from shards.build.recipe import other_version
from shards.build.set_folder import (
    BUILDER,
    UnwritableShard,
    claim_folder,
    is_finished,
    remove_failed,
    remove_set,
    writing,
)
from shards.build.sources import Source, UnknownLabels
from shards.build.work import Work, find_work
from shards.build.writer import NOTE_FORMAT, ShardNote, Unit, build_shard
from shards.images.masks import unknown_message
from shards.manifest import FORMAT_VERSION, SPLITS, Manifest, ShardInfo, combined_statistics, read_manifest
from shards.manifest import write_manifest as save_manifest


def make_shards(config: MakeShardsConfig, *, quiet: bool = False) -> Manifest | None:
    """Build the missing parts of the set; returns the manifest, or None if other tasks' shards are still missing.

    Raises:
        UserError: bad sources or settings, a different recipe in the folder, a full disk.
    """
    work = find_work(config) if quiet else find_work(config, say)
    folder = config.folder
    if not config.overwrite and is_finished(work, quiet=True) and not (folder / BUILDING).exists():
        return _make(work, quiet, ExitStack())  # writes nothing, so the set can be read-only
    # Builders with the same recipe share the work; one that deletes the set must be alone.
    recipe = "" if config.overwrite else hashlib.sha256(json.dumps(work.recipe, sort_keys=True).encode()).hexdigest()
    with ExitStack() as afterwards, owned(folder, BUILDER, group=recipe):
        return _make(work, quiet, afterwards)


def _make(work: Work, quiet: bool, afterwards: ExitStack) -> Manifest | None:
    config, folder = work.config, work.config.folder
    if config.overwrite:
        remove_set(folder)
    remove_leftovers(folder / SOURCE, deep=True)
    for place in (folder, folder / BUILDING):
        remove_leftovers(place)
    if is_finished(work, quiet=quiet):
        shutil.rmtree(folder / BUILDING, ignore_errors=True)  # left by a builder that was killed at the very end
        manifest = read_manifest(folder)
        if not quiet:
            made_by = other_version(manifest.recipe)
            old = f", by {made_by}; it is kept as is; --overwrite rebuilds it" if made_by else ""
            say(f"{folder}: already finished, with this recipe{old}")
        return manifest
    if not quiet and work.choices:
        say("\n".join(["chosen:", *(f"  {choice.line()}" for choice in work.choices)]))
    fresh = claim_folder(work)
    try:
        if not config.finish:
            task, tasks = config.task_share()
            _build_units(work, work.units[task::tasks], quiet)
        return None if config.task else _finish(work, quiet)
    except UnwritableShard:
        raise
    except UserError:
        # The sources or settings must change, and the recipe with them, so the files here would only be in the way.
        if fresh and not config.task:
            afterwards.callback(remove_failed, work)
        raise


def _build_units(work: Work, units: Iterable[Unit], quiet: bool) -> None:
    """Build the units that aren't complete yet; mask values that belong to no class are reported for all files at
    once."""
    units = list(units)
    missing = [unit for unit in units if not _is_whole(work, unit)]
    # Two builders of one set share the work as long as they don't walk through it in lockstep.
    random.shuffle(missing)
    total = sum(len(unit.sources) for unit in units)
    done = total - sum(len(unit.sources) for unit in missing)
    label = f"building {work.config.folder}"
    unknown: UnknownLabels | None = None
    with Progress(label, total=total, unit="images", quiet=quiet, done=done) as progress:
        for unit, problem in _run(work, missing):
            if unknown := problem:
                break
            progress.advance(len(unit.sources))
    if unknown is not None:
        # A unit stops at its first bad mask; the user wants to see them all.
        check_masks([source for unit in units for source in unit.sources], work.config, quiet=quiet)
        raise UserError(unknown_message({str(unknown.path): unknown.counts}, work.config.masks))


def _is_whole(work: Work, unit: Unit) -> bool:
    """True if the unit's note (or the set's manifest) exists, its tar has the recorded size, and its sources are
    unchanged since it was cut."""
    if (work.config.folder / MANIFEST).exists():
        return True
    note, written = _read_note(work.note_path(unit))
    if note is None or len(note.contents) != len(unit.sources):
        return False
    if unit.split == "test":
        whole = all(source.kept() for source in unit.sources)
    else:
        tar = work.config.folder / f"{unit.name}.tar"
        whole = tar.exists() and tar.stat().st_size == note.bytes and tar.with_suffix(INDEX_SUFFIX).exists()
    return whole and not changed_sources(unit.sources, note.contents, written, work.config, work.target.channels)


def _read_note(path: Path) -> tuple[ShardNote | None, int]:
    """A shard's note, and when it was written (nanoseconds); None if it is missing or unreadable."""
    try:
        with path.open("rb") as file:
            values, written = json.loads(file.read().decode()), os.fstat(file.fileno()).st_mtime_ns
    except (FileNotFoundError, ValueError):
        return None, 0
    read_version(values, NOTE_FORMAT, str(path))
    values.pop(VERSION_KEY, None)
    return from_dict(ShardNote, values, str(path)), written


def _run(work: Work, units: list[Unit]) -> Iterator[tuple[Unit, UnknownLabels | None]]:
    """Build `units` here or in worker processes, in any order."""
    processes = min(work.config.processes or usable_cores(), len(units))
    if processes <= 1:
        for unit in units:
            yield unit, _build_unit(work, unit)
        return
    # Spawn, because forking a process with threads (the progress bar's) can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_die_with_parent) as pool:
        running = {}
        try:
            with _without_script():
                for unit in units:
                    running[pool.submit(_build_unit, work.without_sources(), unit)] = unit
            for future in as_completed(running):
                yield running[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _without_script() -> Iterator[None]:
    """Start workers that don't import the caller's script, which they don't need.

    A spawned process otherwise imports the main module first, and a script without `if __name__ == "__main__"` would
    run all over again in each worker.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _build_unit(work: Work, unit: Unit) -> UnknownLabels | None:
    """Build one unit, unless another builder already has."""
    if _is_whole(work, unit):
        return None
    try:
        with writing(work.config.folder, unit.name):
            build_shard(unit, work.target, work.note_path(unit))
    except UnknownLabels as error:
        return error
    return None


def _die_with_parent() -> None:
    """End this worker once its parent is gone, however it died: a killed parent can't notify its workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _finish(work: Work, quiet: bool) -> Manifest:
    """Write the manifest from the notes, then remove them."""
    config = work.config
    notes = {unit: _read_note(work.note_path(unit))[0] if _is_whole(work, unit) else None for unit in work.units}
    # Another builder may have been faster. It removes the notes after writing the manifest, so check in this order.
    if is_finished(work, quiet=quiet):
        shutil.rmtree(config.folder / BUILDING, ignore_errors=True)
        return read_manifest(config.folder)
    if missing := [unit.name for unit, note in notes.items() if note is None]:
        shown = ", ".join(missing[:10]) + (", …" if len(missing) > 10 else "")
        raise UserError(
            f"{config.folder}: {len(missing)} of {len(work.units)} parts are missing ({shown}); "
            "run their tasks again, or make-shards without --task, then --finish"
        )
    whole = [(unit, note) for unit, note in notes.items() if note is not None]
    _refuse_copies(whole)
    manifest = _manifest(work, whole)
    with writing(config.folder, MANIFEST):
        save_manifest(config.folder, manifest)
    shutil.rmtree(config.folder / BUILDING, ignore_errors=True)
    return manifest


def _refuse_copies(notes: list[tuple[Unit, ShardNote]]) -> None:
    """Refuse the same image in two splits, even in different files: it would make the scores worthless."""
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
            "remove the copies, or keep them in one split with --split.group or a list"
        )


def _manifest(work: Work, notes: list[tuple[Unit, ShardNote]]) -> Manifest:
    target, config = work.target, work.config
    train = [note for unit, note in notes if unit.split == "train"]
    samples = sum(note.samples for note in train)
    if not samples:
        raise UserError(
            f"{config.folder}: no patch was kept, because all hold only background (label 0); "
            "check --masks.classes, or keep them with --patches.no-drop-background"
        )
    mean, std = combined_statistics(
        [sum(column) for column in zip(*(note.sums for note in train), strict=True)],
        [sum(column) for column in zip(*(note.squares for note in train), strict=True)],
        samples * config.patches.size**2,
    )
    return Manifest(
        format_version=FORMAT_VERSION,
        scale=config.patches.scale,
        upright=config.images.upright == "yes",
        recipe=merge(work.recipe, {"images": {"orientation": config.images.orientation}}),
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
