"""The command: sends numbers to child processes, counts the outcomes, and replaces children that die."""

import argparse
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO

from segdist.core.terminal import Progress
from tests.fuzz.subjects import SUBJECTS

MEMORY = 3 << 30
"""Bytes of address space per child, of which Python and its libraries use one gigabyte."""


@dataclass
class Outcome:
    """Outcomes for one subject's files."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def fuzz(names: Sequence[str], files: int, seed: int, *, first: int = 0, quiet: bool = False) -> dict[str, Outcome]:
    """Read `files` damaged files of each subject, determined by `seed`."""
    outcomes = {name: Outcome() for name in names}
    # Interleaved, so that even an interrupted run covers all subjects.
    todo = [(name, number) for number in range(first, first + files) for name in names]
    with Progress("reading damaged files", total=len(todo), unit="files", quiet=quiet) as progress:
        while todo:
            done = _child(todo, seed, outcomes, progress)
            todo = todo[done:]
    return outcomes


def _child(todo: list[tuple[str, int]], seed: int, outcomes: dict[str, Outcome], progress: Progress) -> int:
    """Let one child work through `todo` as far as it can; return how far it got."""
    with tempfile.TemporaryFile("w+") as errors:
        return _child_with(errors, todo, seed, outcomes, progress)


def _child_with(
    errors: IO[str], todo: list[tuple[str, int]], seed: int, outcomes: dict[str, Outcome], progress: Progress
) -> int:
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.fuzz.child", str(seed), str(MEMORY)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    assert child.stdin
    assert child.stdout

    def feed() -> None:
        assert child.stdin
        try:
            for name, number in todo:
                child.stdin.write(f"{name} {number}\n")
            child.stdin.close()
        except OSError:
            pass  # it died; the next child gets the remaining lines

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    done = 0
    try:
        while done < len(todo):
            name, number = todo[done]
            begin, end = child.stdout.readline(), child.stdout.readline()
            kind, _, what = end.removeprefix("end ").rstrip().partition(" ")
            if not begin.startswith("begin") or not end:
                kind, what = "FAILED", f"the process died ({child.wait()}): {_last_words(errors)}"
            outcomes[name].counts[kind] += 1
            if kind == "FAILED":
                outcomes[name].failures.append(f"{name} {number} (seed {seed}): {what}")
            progress.advance()
            done += 1
            if not end:
                break
    finally:
        child.kill()
        child.wait()
    feeder.join()
    return done


def _last_words(errors: IO[str]) -> str:
    errors.seek(0)
    return errors.read()[-2000:]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Read damaged files of every kind.")
    parser.add_argument("--files", type=int, default=2000, help="damaged files of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first: with --files 1, one file again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds whose name begins so: png, tiff, shard, …")
    args = parser.parse_args()
    names = [subject.name for subject in SUBJECTS if subject.name.startswith(args.only)]
    outcomes = fuzz(names, args.files, args.seed, first=args.first)
    print(f"{'kind':22}{'pixels':>9}{'refused':>9}{'FAILED':>9}")
    for name, outcome in outcomes.items():
        print(f"{name:22}" + "".join(f"{outcome.counts[kind]:9}" for kind in ("pixels", "refused", "FAILED")))
    failures = [failure for outcome in outcomes.values() for failure in outcome.failures]
    for failure in failures[:20]:
        print(failure)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
