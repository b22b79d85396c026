"""Turn a job's own options into links to submit: commands, logs, files that show progress and success."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.command_line import parse
from jobs.config import FoldsConfig, without_preset
from jobs.cross_validate import infer_arguments, train_arguments
from segdist.core import paths
from segdist.core.code_version import current_version
from segdist.core.errors import UserError
from segdist.core.fold import fold_folder
from segdist.core.json_values import JsonObject
from segdist.core.parsing import option_value, write_settings
from segdist.inference.config import InferConfig
from segdist.set_job import MakeShardsJob
from segdist.training.config import TrainConfig
from segdist.training.presets import find_preset
from slurm.pipeline import Link
from slurm.profiles import load_profile
from slurm.submit import Order
from slurm.task import Task


@dataclass(frozen=True)
class Submission:
    """Settings shared by all links of a submission."""

    profile: str
    cluster: str
    tasks: int = 1
    stage_to: str = ""

    def link(
        self,
        name: str,
        job: str,
        commands: list[list[str]],
        folder: Path,
        product: Path,
        progress: tuple[str, ...],
        stage: str = "",
    ) -> Link:
        """One link; several commands make an array."""
        if not self.profile and self.cluster == "slurm":
            raise UserError(
                "--profile: name your cluster's profile, a TOML file (docs/cluster.md shows how to write one)"
            )
        profile = load_profile(self.profile or "local", job)
        if len(commands) > 1 or name in ("finish-shards", "finish-folds") or name.endswith("-merge"):
            # Array tasks don't communicate, so each is a single rank, as is the job that merges their work.
            profile = replace(profile, nodes=1, tasks_per_node=1)
        if self.cluster == "debug":
            profile = replace(profile, nodes=1, tasks_per_node=1, launcher="srun")
        logs = (folder / paths.SLURM_LOGS).absolute()
        if "%" in str(logs):
            raise UserError(
                f"{folder}: submitted jobs can't have a % in their run's path, which Slurm would expand in that of "
                "their logs; choose another --name"
            )
        code = current_version()
        tasks = tuple(
            Task(
                arguments=(job, *command),
                folder=str(logs),
                code=code,
                progress=progress,
                stage=stage if self.stage_to else "",
                stage_to=self.stage_to if stage else "",
                torchrun=profile.ranks_per_node if profile.launcher == "torchrun" else 0,
            )
            for command in commands
        )
        return Link(Order(name, tasks, profile, logs, settings=_fingerprint(commands)), str(product))

    def array(self, count: int) -> int:
        """Number of array tasks; without Slurm, one process does all the work and gives the same bytes."""
        return count if self.cluster == "slurm" else 1


def shard_links(submission: Submission, arguments: list[str], folder: Path | None = None) -> list[Link]:
    """make-shards, in one job; or an array and a job that writes the manifest."""
    config = parse(MakeShardsJob, arguments, "make-shards", "").job
    if config.task or config.finish:
        raise UserError("--task and --finish are set by --tasks; omit them")
    logs = folder or paths.RUNS / config.name
    product = config.folder / paths.MANIFEST
    progress = (f"{config.folder}/**/*.tar",)
    count = submission.array(submission.tasks)
    if count == 1:
        return [submission.link("make-shards", "make-shards", [arguments], logs, product, progress)]
    commands = [[*arguments, "--task", f"{index}/{count}"] for index in range(count)]
    finish = [[*arguments, "--finish"]]
    return [
        submission.link("make-shards", "make-shards", commands, logs, product, progress),
        submission.link("finish-shards", "make-shards", finish, logs, product, progress),
    ]


def train_links(submission: Submission, arguments: list[str]) -> list[Link]:
    """train."""
    preset, values = find_preset(arguments)
    config = parse(TrainConfig, arguments, "train", "", preset=preset, preset_values=values).job
    run = config.run_dir
    stage = ""
    if submission.stage_to:
        if len(config.data) > 1:
            raise UserError(f"--stage-to copies one shard set, but --data names {len(config.data)}")
        stage = str(Path(paths.set_dir(config.data[0])).absolute())
        # The run folder's name must not depend on where the copy is.
        arguments = [*arguments, "--data", stage, "--name", str(run)]
    progress = (f"{run}/{paths.CHECKPOINTS}/step-*.pt",)
    return [submission.link("train", "train", [arguments], run, run / paths.LAST_MODEL, progress, stage)]


def infer_links(submission: Submission, arguments: list[str], product: Path | None = None) -> list[Link]:
    """infer, in one job of several ranks; or an array over the images and a job that merges the scores."""

    config = parse(InferConfig, arguments, "infer", "").job
    if config.task:
        raise UserError("--task is set by --tasks; omit it")
    model = config.models[0]
    run = model.parent if model.suffix else model
    output = Path(config.out) if config.out else run / paths.PREDICTIONS
    progress = (f"{output}/**/{paths.STATE}/finished/*.jsonl", f"{output}/**/{paths.STATE}/parts/*/*")
    product = product or output
    # One model can segment several collections at once, each into its own folder, under its own name.
    name = f"infer-{output.name}" if config.out else "infer"
    count = submission.array(submission.tasks)
    if count == 1:
        return [submission.link(name, "infer", [arguments], run, product, progress)]
    commands = [[*arguments, "--task", f"{index}/{count}"] for index in range(count)]
    return [
        submission.link(name, "infer", commands, run, output, progress),
        submission.link(f"{name}-merge", "infer", [arguments], run, product, progress),
    ]


def missing_inputs(job: str, arguments: list[str]) -> list[str]:
    """Missing folders, sets and models among a job's inputs, to report now rather than hours later in its log.

    Returns:
        The options, each with its value: `--data data/cells`.
    """
    sets: tuple[str, ...] = ()
    missing = []
    if job == "make-shards":
        recipe = parse(MakeShardsJob, arguments, "make-shards", "").job
        folders = {"--images.folder": recipe.images.folder, "--masks.folder": recipe.masks.folder}
        missing += [f"{flag} {folder}" for flag, folder in folders.items() if folder and not Path(folder).exists()]
    elif job == "train":
        preset, values = find_preset(arguments)
        sets = parse(TrainConfig, arguments, "train", "", preset=preset, preset_values=values).job.data
    elif job == "infer":
        config = parse(InferConfig, arguments, "infer", "").job
        sets = (config.data,) if config.data else ()
        missing += [f"--model {model}" for model in config.models if not model.exists()]
    local = [path for name in sets if isinstance(path := paths.set_dir(name), Path)]  # the others are URLs
    return missing + [f"--data {path}" for path in local if not (path / paths.MANIFEST).exists()]


def pipeline_links(
    submission: Submission,
    name: str,
    make_shards: JsonObject,
    train: JsonObject,
    infer: JsonObject,
    infer_tasks: int,
    settings: Path,
) -> list[Link]:
    """make-shards → train → infer → report on a set and a run with the same name.

    Args:
        make_shards, train, infer: settings of the three jobs, as tables of their configs.
        settings: folder for files through which the jobs get them.
    """
    run = paths.RUNS / name
    train, preset = without_preset(train)
    scores = run / paths.PREDICTIONS / name / paths.SCORES
    return [
        *shard_links(submission, [*_settings(settings, "make_shards", make_shards), "-f", name], run),
        *train_links(submission, [*_settings(settings, "train", train), *preset, "-f", name, "--name", name]),
        *infer_links(
            replace(submission, tasks=infer_tasks),
            [*_settings(settings, "infer", infer), "-m", str(run), "-f", name],
            scores,
        ),
        submission.link("report", "report", [[str(run)]], run, run / paths.REPORT, (f"{run}/{paths.REPORT}",)),
    ]


def fold_links(submission: Submission, config: FoldsConfig, settings: Path) -> list[Link]:
    """Trainings of all folds, concurrently as array tasks → infer → scores."""
    tables, run, scores = config.tables(), config.folder, config.folder / paths.SCORES
    train, _ = without_preset(tables["train"])
    options = _settings(settings, "train", train)
    folds = []
    for number, arguments in enumerate(train_arguments(config), start=1):
        fold = fold_folder(run, number)
        progress = (f"{fold}/{paths.CHECKPOINTS}/step-*.pt",)
        command = [*options, *arguments]
        folds.append(submission.link(f"train-{number}", "train", [command], run, fold / paths.LAST_MODEL, progress))
    if submission.cluster == "slurm":
        folds = [_as_array("train", folds)]
    infer = [*_settings(settings, "infer", tables["infer"]), *infer_arguments(config)]
    finish = ["-f", config.data, "--name", run.name, "--folds", str(config.folds), "--finish"]
    seed = ["--train", json.dumps({"seed": config.seed})] if config.seed else []
    return [
        *folds,
        *infer_links(submission, infer, run / paths.OUT_OF_FOLD / paths.SCORES),
        submission.link("finish-folds", "cross-validate", [[*finish, *seed]], run, scores, (str(scores),)),
    ]


def _as_array(name: str, links: list[Link]) -> Link:
    """Merge links into one job array whose tasks keep their nodes and ranks."""
    tasks = tuple(task for link in links for task in link.order.tasks)
    return Link(replace(links[0].order, name=name, tasks=tasks), links[-1].product)


def _settings(folder: Path, job: str, settings: JsonObject) -> list[str]:
    """The options that pass a job its table, through a file that no later submission changes."""
    if not settings:
        return []
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    file = folder / f"{job}-{digest}.json"
    if not file.exists():
        write_settings(file, settings)
    return ["--config", str(file)]


def _fingerprint(commands: list[list[str]]) -> str:
    """Fingerprint of the files named by the commands: with a changed `--config`, the same command is a different
    job."""
    digest = hashlib.sha256()
    for command in commands:
        for option in ("--config", "--preset"):
            file = Path(option_value(command, option) or "")
            if file.is_file():
                digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
