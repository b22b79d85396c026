"""An inference job from config to scores: what `segdist infer` does on every rank.

All ranks agree on the list of images and on who computes which tile rows; then each works alone until its part is done.
No rank waits for another during that work, so a rank that fails can't leave the others hanging.
"""

import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path

import torch

from segdist.core.errors import UserError
from segdist.core.files import full_disk_named, write_json, write_json_rows
from segdist.core.formats import stamped
from segdist.core.json_values import JsonObject
from segdist.core.owner import owned
from segdist.core.paths import FAILURES, SCORES, STATE
from segdist.core.terminal import Progress, warn
from segdist.inference.assignment import Stretch, assign
from segdist.inference.config import InferConfig
from segdist.inference.ensemble import load_tile_model
from segdist.inference.evaluation import summarize
from segdist.inference.finish import finish
from segdist.inference.finished_log import Record
from segdist.inference.result_folder import ResultFolder
from segdist.inference.result_identity import PREPARED, THREADS, result_settings
from segdist.inference.segment import megapixels, segment
from segdist.inference.survey import collection_paused, survey
from segdist.inference.task import Failure, ImageTask, Task, prepare
from segdist.inference.tiler import ModelError, TileFunction
from segdist.ranks.process_group import Ranks

PATIENCE = timedelta(days=30)
"""How long a finished rank waits for the others. A dead rank is noticed at once, because its connection closes."""
SCORES_VERSION, FAILURES_VERSION = 1, 1
"""Version 0 of the scores only lacks the version number; version 0 of the failures is a bare list."""


@dataclass
class Result:
    """The result of a job; the same on all ranks."""

    folder: Path
    """The output folder."""
    images: int
    """Number of images, including those that failed."""
    failures: list[Failure]
    """Images that couldn't be segmented, with the reason."""
    scores: JsonObject | None
    """The content of scores.json, if any image has a true mask."""
    files: list[str] = field(default_factory=list)
    """The kinds of files written."""
    reused: int = 0
    """Number of images that were finished before."""


def infer(config: InferConfig, ranks: Ranks) -> Result:
    """Segment the images that `config` names and score them. Collective.

    Raises:
        UserError: see `prepare`; the output folder holds other results; with `strict`, a damaged image.
    """
    task = examine(config, ranks)
    folder = ResultFolder(task.folder, task.images)
    with full_disk_named(task.folder), _owned(task, ranks):
        prepare_models = _fix_settings(task, folder, ranks)
        return _run(task, folder, ranks, prepare_models=prepare_models)


def examine(config: InferConfig, ranks: Ranks) -> Task:
    """Prepare the job without writing anything; a dry run ends here. Collective.

    Raises:
        UserError: see `prepare`; the output folder holds other results.
    """
    task = prepare(config, ranks)
    if not config.overwrite:
        ResultFolder(task.folder, task.images).refuse_other_settings(result_settings(task, ranks.device))
    return task


@contextmanager
def _owned(task: Task, ranks: Ranks) -> Iterator[None]:
    """Lock the output folder against other jobs; the tasks of an array share it, each task once. Collective."""
    part, parts = task.config.task_part()
    this_start = ranks.broadcast(uuid.uuid4().hex)
    wanted = [(task.folder, f"array of {parts}" if parts > 1 else this_start)]
    if parts > 1:
        wanted.append((task.folder / STATE / "tasks" / f"{part}-of-{parts}", this_start))
    with ExitStack() as stack:
        for rank in (0, None):  # rank 0 first, so that all ranks raise its error
            problem = ""
            if (ranks.rank == 0) == (rank == 0):
                try:
                    for folder, group in wanted:
                        stack.enter_context(owned(folder, "segdist infer", group=group))
                except UserError as error:
                    problem = str(error)
            if problems := [text for text in ranks.gather(problem) if text]:
                raise UserError(problems[0])
        yield


def _fix_settings(task: Task, folder: ResultFolder, ranks: Ranks) -> bool:
    """Record the settings that results depend on, and use as many threads as when the folder was first started.

    Returns:
        Whether to prepare the models; False in folders from before that was done.
    """
    problem, threads, prepare_models = "", torch.get_num_threads(), True
    if ranks.is_main:
        try:
            settings = result_settings(task, ranks.device)
            in_force = folder.begin(settings, threads, task.config.overwrite)
            threads, prepare_models = in_force[THREADS], in_force[PREPARED]
        except UserError as error:
            problem = str(error)
    problem, threads, prepare_models = ranks.broadcast((problem, threads, prepare_models))
    if problem:
        raise UserError(problem)
    if threads != torch.get_num_threads() and ranks.device.type == "cpu":
        if ranks.is_main:
            warn(f"{threads} threads per rank, as when {task.folder} was started: the last bits depend on their number")
        torch.set_num_threads(threads)
    return bool(prepare_models)


def _run(task: Task, folder: ResultFolder, ranks: Ranks, *, prepare_models: bool) -> Result:
    found = survey(task, folder, ranks)
    done = Done(task, ranks, dict(found.records), dict(task.unusable))
    stretches = found.stretches(task)
    pieces = assign(stretches, ranks.world_size)
    _segment_share(task, folder, pieces, done, prepare_models=prepare_models)
    computed = {stretch.image for stretch in stretches}
    complete = [image for image in task.images if image.number in found.parts and image not in computed]
    for image in complete[ranks.rank :: ranks.world_size]:
        with done.failures_noted(image):
            done.records[image.number] = finish(task, folder, image)
    _finish_shared(task, folder, pieces, done)
    with collection_paused():
        return _conclude(task, done, reused=len(task.images) - len(found.parts))


@dataclass
class Done:
    """What one rank has done or found finished, by image number."""

    task: Task
    ranks: Ranks
    records: dict[int, Record]
    failures: dict[int, Failure]

    @contextmanager
    def failures_noted(self, image: ImageTask) -> Iterator[None]:
        """Record an error in one image as a failure; with `strict`, raise it."""
        try:
            yield
        except (UserError, MemoryError) as problem:
            error = problem if isinstance(problem, UserError) else UserError(f"{image.path}: not enough memory")
            if self.task.config.strict or isinstance(error, ModelError):
                error.on_this_rank = True
                raise error from None
            message = str(error) if image.path in str(error) else f"{image.path}: {error}"
            self.failures[image.number] = Failure(image.path, message)
            warn(f"rank {self.ranks.rank}: {message}" if self.ranks.rank else message)


def _segment_share(
    task: Task, folder: ResultFolder, pieces: list[list[Stretch]], done: Done, *, prepare_models: bool
) -> None:
    """Segment this rank's stretches in turn; images that no other rank works on are finished right away."""
    ranks = done.ranks
    mine = pieces[ranks.rank]
    if not mine:
        return
    others = {stretch.image for rank, piece in enumerate(pieces) if rank != ranks.rank for stretch in piece}
    left = Counter(stretch.image for stretch in mine)
    config = task.config

    @cache
    def model_of(fold: int) -> TileFunction:
        return load_tile_model(
            task.models_of(fold),
            ranks.device,
            task.precision,
            flips=config.flips,
            channels_last=config.channels_last,
            trusted=config.trust_factory,
            compiled=config.compile,
            disagreement=config.output.disagreement,
            calibrated=config.calibrated,
            prepare=prepare_models,
        )

    label = "segmenting" if ranks.world_size == 1 else f"segmenting (rank 0 of {ranks.world_size})"
    total = round(sum(map(megapixels, mine)), 3)
    with Progress(label, total, "Mpx", quiet=config.quiet or not ranks.is_main) as progress:
        for stretch in mine:
            image, alone = stretch.image, stretch.image not in others
            left[image] -= 1
            with done.failures_noted(image):
                layers = segment(model_of(image.fold), task, folder, stretch, progress.advance, alone=alone)
                if layers is not None or (alone and not left[image]):
                    done.records[image.number] = finish(task, folder, image, layers)


def _finish_shared(task: Task, folder: ResultFolder, pieces: list[list[Stretch]], done: Done) -> None:
    """After all ranks are done, finish images shared by several ranks; each by the rank that had its top."""
    failed = {number for share in done.ranks.gather(done.failures) for number in share}
    ranks_of: dict[ImageTask, list[int]] = {}
    for rank, piece in enumerate(pieces):
        for image in dict.fromkeys(stretch.image for stretch in piece):
            ranks_of.setdefault(image, []).append(rank)
    for image, theirs in ranks_of.items():
        if len(theirs) > 1 and theirs[0] == done.ranks.rank and image.number not in failed:
            with done.failures_noted(image):
                done.records[image.number] = finish(task, folder, image)


def _conclude(task: Task, done: Done, *, reused: int) -> Result:
    """Gather what all ranks did; rank 0 writes scores and failures."""
    records: dict[int, Record] = {}
    failures: dict[int, Failure] = {}
    for theirs, failed in done.ranks.gather((done.records, done.failures)):
        records |= theirs
        failures |= failed
    scored = [
        records[image.number]["scores"] | {"name": image.name}
        for image in task.images
        if image.number in records and records[image.number]["scores"]
    ]
    scores = summarize(task.class_names, scored) if scored else None
    listed = [failures[number] for number in sorted(failures)]
    if done.ranks.is_main:
        if scores is not None:
            file = task.folder / task.config.of_this_part(SCORES)
            write_json_rows(file, stamped(scores, SCORES_VERSION), "images")
        failures_file = task.folder / task.config.of_this_part(FAILURES)
        if listed:
            write_json(failures_file, stamped({"failures": [asdict(item) for item in listed]}, FAILURES_VERSION))
        else:
            failures_file.unlink(missing_ok=True)
    kinds = sorted({kind for record in records.values() for kind in record["files"]})
    return Result(task.folder, len(task.images) + len(task.unusable), listed, scores, kinds, reused)
