"""`segdist report`: write one self-contained HTML file about a run, or a comparison of several.

    segdist report RUN              → RUN/report.html
    segdist report RUN RUN …        → comparison.html next to the first

RUN is a name below runs/, a run folder, or a folder of predictions. The page opens from disk, needs no network and
contains everything: scores, curves, figures, timings, the command and the config.
"""

import sys

from jobs.command_line import parse_options
from jobs.config import ReportConfig
from jobs.entry import run_job
from segdist.core.exit_codes import FINISHED


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    config = parse_options(ReportConfig, argv, "report", __doc__ or "")
    # Heavy imports come after parsing the command line.
    from segdist.core.terminal import say
    from segdist.runs.record import find_run
    from segdist.runs.report import write_report

    say(f"report: {write_report([find_run(name) for name in config.runs], config.out, config.figures)}")
    return FINISHED


if __name__ == "__main__":
    sys.exit(run_job(main))
