"""A job whose ranks wait only a few seconds for each other: impatient.py SECONDS JOB ARGUMENTS."""

import functools
import sys
from datetime import timedelta

from segdist.ranks import process_group


def main(seconds: str, job: str, *arguments: str) -> int:
    """Run the job; return its exit code."""
    import importlib

    from jobs.entry import run_job

    patient = process_group.ranks
    process_group.ranks = functools.partial(patient, timeout=timedelta(seconds=float(seconds)))  # type: ignore[assignment]
    return run_job(importlib.import_module(f"jobs.{job}").main, list(arguments))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
