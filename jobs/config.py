"""Settings of the jobs that start, show or submit others. train, infer and make-shards have theirs in their rooms."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from segdist.core.errors import UserError
from segdist.core.paths import DATA
from segdist.core.ranges import Count, CountOrZero, Positive, Range, Seed
from segdist.model.config import JsonTable

Tasks = Annotated[int, Range(1, 10_000)]


@dataclass(frozen=True)
class ReportConfig:
    """What to report on."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run folders, or names below runs/."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The file to write; default: report.html in the run folder."""
    figures: CountOrZero = 20
    """Figures of test images, the worst first; 0: none."""

    def validate(self) -> None:
        """Raises UserError where no run is named."""
        if not self.runs:
            raise UserError("name at least one run: segdist report RUN")


@dataclass(frozen=True)
class StatusConfig:
    """What to show."""

    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Run folders, or names below runs/; none: all."""
    follow: Annotated[bool, tyro.conf.arg(aliases=["-F"]), tyro.conf.FlagCreatePairsOff] = False
    """Show it again and again until the runs have finished or failed; Ctrl-C ends it."""
    every: Positive = 2.0
    """Seconds between two looks at the files."""


@dataclass(frozen=True)
class QueueConfig:
    """Show how submitted jobs stand."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names or folders of runs; none: all under runs/."""


@dataclass(frozen=True)
class ShardsCommand:
    """What to do with which set."""

    action: Annotated[Literal["inspect", "verify"], tyro.conf.Positional]
    """inspect: print what is in it, write a contact sheet; verify: check every checksum and record."""
    shard_set: Annotated[str, tyro.conf.Positional]
    """Name of a set in `root`, its folder, or its URL."""
    root: Path = DATA
    """Where shard sets live."""
    split: Literal["train", "val"] = "train"
    """Split of the contact sheet."""
    seed: Seed = 0
    """Another seed shows other patches."""
    out: Path | None = None
    """File of the contact sheet; contact_sheet.png in the set's folder if left out."""


@dataclass(frozen=True)
class PipelineConfig:
    """The three jobs, one after another, on this machine."""

    name: str = "pipeline"
    """Name of the shard set (data/NAME) and of the run (runs/NAME)."""
    processes: Annotated[int, Range(1, 4096)] = 2
    """Ranks for training and inference."""
    fresh: bool = False
    """Throw away the shard set and the run of that name and start over."""
    make_shards: JsonTable = field(default_factory=dict)
    """Settings of `segdist make-shards`: a TOML table, or JSON on the command line."""
    train: JsonTable = field(default_factory=dict)
    """Settings of `segdist train`, and `preset`."""
    infer: JsonTable = field(default_factory=dict)
    """Settings of `segdist infer`."""
    tracking: JsonTable = field(default_factory=dict)
    """Settings of all three jobs' trackers, where a job's own table has none (`{"wandb": "off"}`)."""

    def validate(self) -> None:
        """Raises UserError for a name that is a path."""
        check_pipeline_name(self.name)


@dataclass(frozen=True)
class SubmitConfig:
    """Put one job into the queue."""

    profile: str = ""
    """Cluster profile: a TOML file, or one of the examples in slurm/profiles (docs/cluster.md)."""
    cluster: Literal["slurm", "local", "debug"] = "slurm"
    """slurm; local: this machine, one job after another; debug: this very process, one rank."""
    tasks: Tasks = 1
    """make-shards and infer: share the work between so many tasks of a job array, and merge in a last job."""
    stage_to: str = ""
    """train: copy the shard set to this folder of each node first, and read it there ('$TMPDIR')."""


@dataclass(frozen=True)
class SubmitPipelineConfig:
    """Put the chain make-shards → train → infer → report into the queue. Each waits for the one before."""

    name: str = "pipeline"
    """Name of the shard set (data/NAME) and of the run (runs/NAME)."""
    processes: Count = 2
    """Ranks, for `segdist pipeline`, which reads the same file; here the profile says how many."""
    profile: str = ""
    """Cluster profile: a TOML file, or one of the examples in slurm/profiles (docs/cluster.md)."""
    cluster: Literal["slurm", "local", "debug"] = "slurm"
    """slurm; local: this machine, one job after another; debug: this very process, one rank."""
    shard_tasks: Tasks = 1
    """Make the shards in so many tasks of a job array."""
    infer_tasks: Tasks = 1
    """Segment in so many tasks of a job array, for very many images; 1: one job of several ranks."""
    stage_to: str = ""
    """Copy the shard set to this folder of each node before training, and read it there ('$TMPDIR')."""
    make_shards: JsonTable = field(default_factory=dict)
    """Settings of `segdist make-shards`: a TOML table, or JSON on the command line."""
    train: JsonTable = field(default_factory=dict)
    """Settings of `segdist train`, and `preset`."""
    infer: JsonTable = field(default_factory=dict)
    """Settings of `segdist infer`."""
    tracking: JsonTable = field(default_factory=dict)
    """Settings of all three jobs' trackers, where a job's own table has none (`{"wandb": "off"}`)."""

    def validate(self) -> None:
        """Raises UserError for a name that is a path."""
        check_pipeline_name(self.name)


def check_pipeline_name(name: str) -> None:
    """Raises UserError for what is no single folder name."""
    if Path(name).name != name:
        raise UserError(f"--name {name}: one folder name, no path")


def tracked(tracking: dict[str, Any], tables: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The jobs' tables with the pipeline's tracking; in W&B the three runs stand in the group of its name."""
    filled = {}
    for job, table in tables.items():
        # By itself make-shards tracks nothing.
        merged = ({"wandb": "auto"} if job == "make_shards" else {}) | tracking | table.get("tracking", {})
        filled[job] = table | ({"tracking": merged} if merged else {})
    return filled
