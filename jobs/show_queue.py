"""`segdist queue`: show the state of submitted jobs, from squeue, sacct and the jobs' own records.

segdist queue              all runs under runs/
segdist queue cells        one run
"""

import sys
from pathlib import Path

from jobs.command_line import parse
from jobs.config import QueueConfig
from jobs.entry import run_job
from segdist.core.errors import UserError
from segdist.core.exit_codes import FINISHED
from segdist.core.paths import RUNS, SLURM_LOGS, run_dir
from segdist.core.terminal import say
from slurm.standing import Standing, left_in_queue, standings

HEADINGS = ("run", "link", "job", "state", "starts", "time", "nodes", "reason")
WIDE = 1000
"""Line width for output to a file or a program."""


def main(argv: list[str] | None = None) -> int:
    """Print a table; returns the exit code."""
    names = parse(QueueConfig, argv, "queue", __doc__ or "").job.names
    runs = [_run_folder(name) for name in names] or sorted(path.parent for path in RUNS.glob(f"*/{SLURM_LOGS}"))
    rows = [_row(run, standing) for run in runs for standing in standings((run / SLURM_LOGS).absolute())]
    if not rows:
        say("nothing was submitted from this folder; `segdist submit --help`")
        return FINISHED
    # Imported here, not for --help: rich takes a tenth of a second.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading, no_wrap=heading != "reason", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    # If the output is not a terminal, lines aren't wrapped, for grep.
    Console(highlight=False, width=None if sys.stdout.isatty() else WIDE).print(table)
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
    if not (path / SLURM_LOGS).is_dir():
        if jobs := left_in_queue((path / SLURM_LOGS).absolute()):
            numbers = " ".join(job.partition(" ")[0] for job in jobs)
            raise UserError(
                f"{path}: this folder was removed while jobs for it are in the queue ({', '.join(jobs)}): they fail or "
                f"start from scratch; end them with `scancel {numbers}`"
            )
        raise UserError(f"{name}: nothing was submitted for a run with that name; `segdist queue` lists all")
    return path


if __name__ == "__main__":
    sys.exit(run_job(main))
