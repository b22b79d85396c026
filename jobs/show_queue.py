"""`segdist queue`: how submitted jobs stand, from squeue, sacct and the jobs' own notes.

segdist queue              all runs under runs/
segdist queue cells        one run
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from jobs.command_line import parse
from jobs.exit_codes import FINISHED, run_job
from jobs.submit_plans import LOGS
from segdist.core.errors import UserError
from segdist.core.paths import RUNS, run_dir
from segdist.core.terminal import say
from slurm.errors import SubmitError
from slurm.standing import Standing, standings

HEADINGS = ("run", "link", "job", "state", "starts", "time", "nodes", "reason")


@dataclass(frozen=True)
class QueueConfig:
    """Show how submitted jobs stand."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names or folders of runs; none: all under runs/."""


def main(argv: list[str] | None = None) -> int:
    """Print a table; returns the exit code."""
    names = parse(QueueConfig, argv, "queue", __doc__ or "").job.names
    runs = [_run_folder(name) for name in names] or sorted(path.parent for path in RUNS.glob(f"*/{LOGS}"))
    try:
        rows = [_row(run, standing) for run in runs for standing in standings((run / LOGS).absolute())]
    except SubmitError as error:
        raise UserError(str(error)) from None
    if not rows:
        say("nothing was submitted from this folder; `segdist submit --help`")
        return FINISHED
    widths = [max(len(row[column]) for row in [HEADINGS, *rows]) for column in range(len(HEADINGS))]
    for row in [HEADINGS, *rows]:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return FINISHED


def _row(run: Path, standing: Standing) -> tuple[str, ...]:
    states = standing.states
    return (
        run.name,
        standing.record.name,
        standing.record.job_id,
        standing.state,
        str(standing.starts or "-"),
        max((state.elapsed for state in states), default="") or "-",
        ",".join(dict.fromkeys(state.nodes for state in states if state.nodes)) or "-",
        standing.reason,
    )


def _run_folder(name: str) -> Path:
    path = run_dir(name)
    if not (path / LOGS).is_dir():
        raise UserError(f"{name}: nothing was submitted for a run of that name; `segdist queue` lists all")
    return path


if __name__ == "__main__":
    sys.exit(run_job(main))
