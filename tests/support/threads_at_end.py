"""A job that writes down which threads are left when it has ended: threads_at_end.py FOLDER JOB ARGUMENTS.

Rank N writes `FOLDER/N`, a line per thread of the operating system. Linux only.
"""

import importlib
import os
import sys
from pathlib import Path


def main(folder: str, job: str, *arguments: str) -> int:
    """Run the job; return its exit code."""
    from jobs.entry import run_job

    code = run_job(importlib.import_module(f"jobs.{job}").main, list(arguments))
    names = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
    (Path(folder) / os.environ["RANK"]).write_text("".join(names))
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
