"""The real training job with as many ranks as fit into this machine: start, 20 steps with a stop, resume.

    python -m tests.benchmarks.many_ranks [--ranks 128]

Counts each rank's operations in the folders of the set and the run, and shows how long each part takes. The ranks are
forked from a process that has torch loaded; with fewer cores than ranks, the times are mostly waiting for a core. 128
ranks need about 10 GB and a few minutes.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from segdist.core.exit_codes import FINISHED, STOPPED
from segdist.runs.record import read_rows
from shards.build.config import PatchesConfig
from shards.manifest import read_manifest
from tests.benchmarks.bars import Bars
from tests.benchmarks.cases import ROOT, benchmark
from tests.support.counted import operations_in
from tests.support.programs import QUIET, TINY_NET
from tests.support.sets import tiny_set
from tests.support.warm_ranks import warm_ranks

MOST_OPERATIONS = 20
"""Of any rank but the first."""
STEPS, STOP_AFTER = 20, 5
PATIENCE = 900
"""Seconds that one start may take."""


@dataclass(frozen=True)
class ManyRanksConfig:
    """What to start."""

    ranks: int = 128


@dataclass(frozen=True)
class Start:
    """What one start of the job did."""

    exit_code: int
    seconds_to_step: float
    """From the first process to the first row of metrics."""
    seconds_to_end: float
    """From there to the end of the last process."""
    operations: list[int]
    """Of each rank, in the folders of the set and the run, beyond those on the shards."""


def start(folder: Path, label: str, ranks: int, stop: bool) -> Start:
    """Train the set `tiny` in `folder` to the end, or until a SIGTERM after a few steps."""
    notes = folder / f"operations of the {label}"
    notes.mkdir()
    settings = ["-f", "tiny", "-n", "run", "-b", str(ranks), "--steps", str(STEPS), "--threads", "1"]
    counted = [str(notes), "train", *settings, "--log-every", str(STOP_AFTER), *TINY_NET, *QUIET]
    metrics = folder / "runs" / "run" / "metrics.jsonl"
    rows = len(read_rows(metrics))
    began = time.monotonic()
    with warm_ranks(ROOT / "tests" / "support" / "counted.py", counted, ranks, folder, folder / "log") as job:
        while job.running and len(read_rows(metrics)) <= rows:
            time.sleep(0.1)
        stepped = time.monotonic()
        if stop:
            job.terminate()
        exit_code = job.wait(PATIENCE)
    ended = time.monotonic()
    shards = [item for info in read_manifest(folder / "data" / "tiny").shards for item in (info.file, info.index_file)]
    found = [operations_in(notes / str(rank), (folder / "data", folder / "runs")) for rank in range(ranks)]
    beyond = [sum(path.name not in shards for _, path in operations) for operations in found]
    return Start(exit_code, stepped - began, ended - stepped, beyond)


def main(words: list[str]) -> int:
    """Print the table and the bars."""
    config = tyro.cli(ManyRanksConfig, args=words, description=__doc__)
    bars = Bars()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_set(folder / "data", patches=PatchesConfig(size=32, per_image=20))
        print("| start | ends as | to the first row of metrics | to the end | operations per rank, most of ranks 1 … |")
        print("|---|---|---|---|---|")
        for label, stop, expected in (("first start", True, STOPPED), ("resume", False, FINISHED)):
            done = start(folder, label, config.ranks, stop)
            most = max(done.operations[1:])
            print(
                f"| {label} of {config.ranks} ranks | {done.exit_code} | {done.seconds_to_step:.0f} s | "
                f"{done.seconds_to_end:.0f} s | {most}, rank 0: {done.operations[0]} |"
            )
            bars.at_most(f"{label}, operations per rank beyond its own shards", most, MOST_OPERATIONS)
            bars.at_most(f"{label}, exit code", done.exit_code, expected)
        steps = [row["step"] for row in read_rows(folder / "runs" / "run" / "metrics.jsonl") if "loss" in row]
        print(f"rows of metrics at steps {steps}")
        bars.at_least("steps", max(steps), STEPS)
    return bars.finish()


if __name__ == "__main__":
    benchmark(main)
