"""Settings of jobs that start, show or submit other jobs. Those of train, infer and make-shards are in their rooms."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from segdist.core.errors import UserError
from segdist.core.fold import MOST_FOLDS
from segdist.core.json_values import JsonObject
from segdist.core.parsing import merge, to_dict
from segdist.core.paths import DATA, RUNS, plain_name
from segdist.core.ranges import CountOrZero, NotNegative, Positive, Range, Seed
from segdist.model.config import JsonTable
from shards.build.config import SetConfig

Tasks = Annotated[int, Range(1, 10_000)]


@dataclass(frozen=True)
class ReportConfig:
    """What to report on."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run folders, or names below runs/."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The file to write; default: report.html in the run folder."""
    figures: CountOrZero = 20
    """Maximum number of figures of test images, worst first; 0: none."""

    def validate(self) -> None:
        """Raises UserError if no run is named."""
        if not self.runs:
            raise UserError("name at least one run: segdist report RUN")


@dataclass(frozen=True)
class CalibrateConfig:
    """Predictions used to fit a temperature and share intervals, and the models that store them."""

    result: tyro.conf.Positional[Path]
    """Folder of predictions with probabilities, of images whose masks are known and which the model that made them
    wasn't trained on."""
    model: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-m"])]
    """Models whose cards store temperature and intervals: run folders, model files, or a folder of folds."""

    def validate(self) -> None:
        """Raises UserError if no model is named."""
        if not self.model:
            raise UserError("--model: name the run folder or model file that stores the temperature")


@dataclass(frozen=True)
class SuspectsConfig:
    """Predictions to compare with their true masks."""

    result: tyro.conf.Positional[Path]
    """Folder of predictions with probabilities, of images whose masks are known and which the model that made them
    wasn't trained on."""
    most: CountOrZero = 200
    """Maximum number of regions written, most suspect first; 0: all."""


@dataclass(frozen=True)
class BenchConfig:
    """What to measure with."""

    data: Annotated[str, tyro.conf.arg(aliases=["-f"])] = ""
    """Shard set: a name under data/, a folder, or a URL; default: synthetic images in a temporary folder."""
    processes: CountOrZero = 0
    """Maximum number of ranks; 0: one per GPU, or per core if there is no GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train and segment; auto: GPUs if there are any."""


@dataclass(frozen=True)
class StatusConfig:
    """What to show."""

    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Run folders, or names below runs/; none: all."""
    follow: Annotated[bool, tyro.conf.arg(aliases=["-F"]), tyro.conf.FlagCreatePairsOff] = False
    """Keep refreshing until the runs have finished or failed; Ctrl-C ends it."""
    every: Positive = 2.0
    """Seconds between refreshes."""


@dataclass(frozen=True)
class QueueConfig:
    """Show the state of submitted jobs."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names or folders of runs; none: all under runs/."""


@dataclass(frozen=True)
class ShardsCommand:
    """What to do, and with which set."""

    action: Annotated[Literal["inspect", "verify"], tyro.conf.Positional]
    """inspect: print what is in it, write a contact sheet; verify: check every checksum and record."""
    shard_set: Annotated[str, tyro.conf.Positional]
    """Name of a set in `root`, its folder, or its URL."""
    root: Path = DATA
    """Folder that holds all shard sets."""
    split: Literal["train", "val"] = "train"
    """Split to show on the contact sheet."""
    seed: Seed = 0
    """A different seed shows different patches."""
    out: Path | None = None
    """File for the contact sheet; default: contact_sheet.png in the set's folder."""


@dataclass(frozen=True)
class ChainConfig(SetConfig):
    """make-shards → train → infer on a set and a run with the same name; the set's settings are those of
    make-shards."""

    name: str = "pipeline"
    """Name of the shard set (data/NAME) and of the run (runs/NAME); can also come first, without the flag."""
    processes: Annotated[int, Range(1, 4096)] = 2
    """Ranks for training and inference; on a cluster, the profile sets the number."""
    minutes: NotNegative = 0.0
    """Wall time of the training; 0: from `train`, else 20."""
    make_shards: JsonTable = field(default_factory=dict)
    """Settings of `segdist make-shards`: a TOML table, or JSON on the command line. Options take precedence."""
    train: JsonTable = field(default_factory=dict)
    """Settings of `segdist train`, and `preset`."""
    infer: JsonTable = field(default_factory=dict)
    """Settings of `segdist infer`."""
    tracking: JsonTable = field(default_factory=dict)
    """Settings for all three jobs' trackers, unless a job's own table has them (`{"wandb": "off"}`)."""

    def validate(self) -> None:
        """Raises UserError for a name that is a path, or a training length given twice."""
        check_pipeline_name(self.name)
        _check_length(self.minutes, self.train)

    def tables(self) -> dict[str, JsonObject]:
        """The settings of each job."""
        options = to_dict(SetConfig(**{item.name: getattr(self, item.name) for item in fields(SetConfig)}))
        make_shards = merge(self.make_shards, _changed(to_dict(SetConfig()), options))
        train = self.train | ({"minutes": self.minutes} if self.minutes else {})
        return tracked(self.tracking, {"make_shards": make_shards, "train": train, "infer": self.infer})


@dataclass(frozen=True)
class PipelineConfig(ChainConfig):
    """The three jobs, one after another, on this machine."""

    fresh: bool = False
    """Delete the shard set and the run of that name and start over."""


@dataclass(frozen=True)
class FoldsConfig:
    """Cross-validation: train a model per fold of the labeled images, and segment each image with the one that was not
    trained on it."""

    data: Annotated[str, tyro.conf.arg(aliases=["-f"])] = "synthetic"
    """Shard set: a name under data/, or a folder. Its training and validation images form the folds."""
    name: Annotated[str, tyro.conf.arg(aliases=["-n"])] = ""
    """Folder of the runs, runs/NAME; default: the set's name and -cv."""
    folds: Annotated[int, Range(2, MOST_FOLDS)] = 5
    """Number of folds, and of models. The seed of `train` determines the images of each."""
    minutes: NotNegative = 0.0
    """Wall time of the training of each fold; 0: from `train`, else 20."""
    train: JsonTable = field(default_factory=dict)
    """Settings of `segdist train`, and `preset`: a TOML table, or JSON on the command line."""
    infer: JsonTable = field(default_factory=dict)
    """Settings of `segdist infer`."""
    tracking: JsonTable = field(default_factory=dict)
    """Settings for the trackers of all runs (`{"wandb": "off"}`). In W&B they form one group."""

    def validate(self) -> None:
        """Raises UserError for a name that is a path, a set behind a URL, or a length given twice."""
        if self.name:
            plain_name(self.name)
        if "://" in self.data:
            raise UserError(f"--data {self.data}: the images to segment are not in a set behind a URL; copy it here")
        _check_length(self.minutes, self.train)
        if own := {"data", "name", "fold"} & self.train.keys():
            raise UserError(f"train: {', '.join(sorted(own))} can't be set here; each fold has its own")
        if own := {"model", "data", "images", "out", "split", "out_of_fold", "calibrated"} & self.infer.keys():
            raise UserError(f"infer: {', '.join(sorted(own))} can't be set here")
        output = self.tables()["infer"]["output"]
        if output["probabilities"] == "none" or output.get("probability_format", "npy") != "npy":
            raise UserError("infer: the scores need output.probabilities, with output.probability_format npy")

    @property
    def folder(self) -> Path:
        """Folder of the folds' runs and the results."""
        return RUNS / (self.name or f"{Path(self.data).name}-cv")

    @property
    def seed(self) -> int:
        """Seed of the training, which determines the folds."""
        return int(self.train.get("seed", 0))

    def tables(self) -> dict[str, JsonObject]:
        """The settings of each job. The out-of-fold results keep their probabilities."""
        train = self.train | ({"minutes": self.minutes} if self.minutes else {})
        infer = merge({"output": {"probabilities": "float16"}}, self.infer)
        return tracked({"group": self.folder.name} | self.tracking, {"train": train, "infer": infer})


@dataclass(frozen=True)
class CrossValidateConfig(FoldsConfig):
    """Cross-validation on this machine, one fold after another."""

    processes: Annotated[int, Range(1, 4096)] = 2
    """Ranks for training and inference."""
    fresh: bool = False
    """Delete the runs and the results and start over."""
    finish: bool = False
    """Only score what the folds' jobs have made; `segdist submit cross-validate` does this at the end."""


@dataclass(frozen=True)
class OnCluster:
    """Where a submission goes."""

    profile: str = ""
    """Cluster profile: a TOML file, or one of the examples in slurm/profiles (docs/cluster.md)."""
    cluster: Literal["slurm", "local", "debug"] = "slurm"
    """slurm; local: this machine, one job after another; debug: this very process, one rank."""


@dataclass(frozen=True)
class SubmitFoldsConfig(FoldsConfig, OnCluster):
    """Submit a cross-validation: the folds as tasks of a job array, then the inference, then the scores."""


@dataclass(frozen=True)
class SubmitConfig(OnCluster):
    """Submit one job."""

    tasks: Tasks = 1
    """make-shards and infer: split the work into this many tasks of a job array, plus a final job that merges."""
    stage_to: str = ""
    """train: copy the shard set to this folder of each node first, and read it there ('$TMPDIR')."""


@dataclass(frozen=True)
class SubmitPipelineConfig(ChainConfig, OnCluster):
    """Submit the chain make-shards → train → infer → report. Each job waits for the previous one."""

    shard_tasks: Tasks = 1
    """Make the shards in this many tasks of a job array."""
    infer_tasks: Tasks = 1
    """Segment in this many tasks of a job array, for a very large number of images; 1: one job with several ranks."""
    stage_to: str = ""
    """Copy the shard set to this folder of each node before training, and read it there ('$TMPDIR')."""


def name_first(arguments: list[str]) -> list[str]:
    """A chain's arguments, with `--name` inserted before a leading name."""
    return ["--name", *arguments] if arguments and not arguments[0].startswith("-") else arguments


def without_preset(train: JsonObject) -> tuple[JsonObject, list[str]]:
    """The settings of `train` without its preset, and the option that selects the preset."""
    settings = {key: value for key, value in train.items() if key != "preset"}
    return settings, ["--preset", train["preset"]] if "preset" in train else []


def check_pipeline_name(name: str) -> None:
    """Raises UserError unless it is a single folder name."""
    if Path(name).name != name:
        raise UserError(f"--name {name}: one folder name, no path")


def tracked(tracking: JsonObject, tables: dict[str, JsonObject]) -> dict[str, JsonObject]:
    """The jobs' tables with the pipeline's tracking; in W&B, the three runs are grouped under its name."""
    filled = {}
    for job, table in tables.items():
        # By itself make-shards tracks nothing.
        merged = ({"wandb": "auto"} if job == "make_shards" else {}) | tracking | table.get("tracking", {})
        filled[job] = table | ({"tracking": merged} if merged else {})
    return filled


def _check_length(minutes: float, train: JsonObject) -> None:
    """Raises UserError if the table `train` gives a length as well."""
    if minutes and (twice := {"steps", "epochs"} & train.keys()):
        raise UserError(f"--minutes and {', '.join(sorted(twice))} of train: give the length of the training once")


def _changed(before: JsonObject, after: JsonObject) -> JsonObject:
    """The settings of `after` that differ from `before`."""
    changed = {}
    for key, value in after.items():
        if isinstance(value, dict) and isinstance(before.get(key), dict):
            if inside := _changed(before[key], value):
                changed[key] = inside
        elif value != before.get(key):
            changed[key] = value
    return changed
