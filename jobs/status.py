"""`segdist status`: show the status of runs, from their files.

    segdist status RUN                    a run: curves, scores per class, time left
    segdist status                        all runs below runs/, one line each
    segdist status RUN --follow           keep refreshing until the run ends

RUN is a name below runs/ or a folder. Nothing else has to be installed or started, so it works over ssh and for
runs on other machines that share the file system.
"""

import sys
import time
from pathlib import Path

from jobs.command_line import parse_options
from jobs.config import StatusConfig
from jobs.entry import run_job
from segdist.core.exit_codes import FINISHED


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    config = parse_options(StatusConfig, argv, "status", __doc__ or "")
    from rich.console import Console, Group, RenderableType
    from rich.live import Live

    from segdist.core.errors import UserError
    from segdist.core.fold import folds_of
    from segdist.core.paths import CONFIG, RUNS, SCORES
    from segdist.runs.record import RunRecord, find_run, read_run, read_run_or_problem
    from segdist.runs.status import overview, status

    folders = [find_run(name) for name in config.runs]
    if not folders and RUNS.is_dir():
        runs = [run for folder in sorted(RUNS.iterdir()) for run in (folder, *folds_of(folder))]
        folders = [run for run in runs if (run / CONFIG).is_file()]
    if not folders:
        raise UserError(f"there are no runs below {RUNS}; start one with `segdist train`, or name a folder")

    def read(folder: Path) -> RunRecord:
        # The run folder of a queued job holds only its submission.
        if config.follow and not (folder / CONFIG).exists() and not any(folder.glob(f"**/{SCORES}")):
            return RunRecord(folder)
        return read_run(folder) if config.runs else read_run_or_problem(folder)

    def look() -> tuple[RenderableType, bool]:
        if not config.runs:
            records = [read(folder) for folder in folders]
            shown: RenderableType = overview(records)
        else:
            parts: list[RenderableType] = []
            records = []
            for folder in folders:
                folds = [read_run_or_problem(fold) for fold in folds_of(folder)]
                parts += [overview(folds)] if folds else []
                if not folds or any(folder.glob(f"**/{SCORES}")):
                    record = read(folder)
                    parts.append(status(record))
                records += folds or [record]
            shown = Group(*parts)
        return shown, all(record.problem or record.state() in ("finished", "failed") for record in records)

    shown, ended = look()
    console = Console(highlight=False)
    if not config.follow:
        console.print(shown)
        return FINISHED
    try:
        with Live(shown, console=console, auto_refresh=False) as live:
            while not ended:
                time.sleep(config.every)
                shown, ended = look()
                live.update(shown, refresh=True)
    except KeyboardInterrupt:
        pass  # the usual way to stop; the run is unaffected
    return FINISHED


if __name__ == "__main__":
    sys.exit(run_job(main))
