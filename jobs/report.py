"""`segdist report`: one self-contained HTML file of a run, or a comparison of several.

    segdist report RUN              → RUN/report.html
    segdist report RUN RUN …        → comparison.html beside the first

RUN is a name below runs/, a run folder, or a folder of predictions. The page opens from the disk, needs no network and
holds everything: scores, curves, figures, timings, the command and the config.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jobs.entry import run_job
from segdist.core.exit_codes import FINISHED


@dataclass(frozen=True)
class ReportConfig:
    """What to report on."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run folders, or names below runs/."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The file to write; default: report.html in the run folder."""
    figures: int = 20
    """Figures of test images, the worst first; 0: none."""


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    config = tyro.cli(ReportConfig, args=argv, prog="segdist report", description=__doc__)
    from segdist.core.errors import UserError
    from segdist.core.terminal import say
    from segdist.runs.record import find_run
    from segdist.runs.report import write_report

    if not config.runs:
        raise UserError("name at least one run: segdist report RUN")
    if config.figures < 0:
        raise UserError(f"--figures {config.figures}: can't be negative")
    say(f"report: {write_report([find_run(name) for name in config.runs], config.out, config.figures)}")
    return FINISHED


if __name__ == "__main__":
    sys.exit(run_job(main))
