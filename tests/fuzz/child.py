"""The process that reads damaged files one after another with limited memory; it may crash.

Reads lines `subject number` from standard input and prints `begin` and `end`, with the outcome, for each. The damage is
determined by (subject, number, seed).
"""

import contextlib
import hashlib
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import zlib
from pathlib import Path

import numpy as np

from segdist.core.errors import UserError
from tests.fuzz.damage import DAMAGES, FORGERIES
from tests.fuzz.subjects import SUBJECTS, Subject

SECONDS = 20
"""Time limit per file, generous for a busy machine."""


class TooSlow(BaseException):
    """A BaseException, since readers would treat an Exception as damage."""


class Case:
    """A subject with its valid file, damaged differently for each number."""

    def __init__(self, subject: Subject, scratch: Path) -> None:
        self.subject = subject
        self.good = scratch / "good"
        self.good.mkdir(parents=True)
        self.target = subject.write(self.good).relative_to(self.good)
        self.content = _digest(subject.read(self.good / self.target))
        path = self.good / self.target
        self.files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
        self.scratch = scratch

    def run(self, seed: int, number: int) -> tuple[str, str]:
        """("pixels", "refused" or "FAILED", a description of the damage and the result)."""
        random = np.random.default_rng((seed, zlib.crc32(self.subject.name.encode()), number))
        ways = {**DAMAGES, **(FORGERIES if "png" in self.subject.name else {})}
        way = sorted(ways)[int(random.integers(0, len(ways)))]
        victim = self.files[int(random.integers(0, len(self.files)))]
        bad = self.scratch / "bad"
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(self.good, bad)
        content = victim.read_bytes()
        changed = ways[way](random, content) if content else random.bytes(9)
        (bad / victim.relative_to(self.good)).write_bytes(changed)
        try:
            with _time_limit():
                found = _digest(self.subject.read(bad / self.target))
        except UserError as error:
            named = str(bad) in str(error)
            return ("refused" if named else "FAILED", f"{way}: {'' if named else 'names no file: '}{error}")
        except TooSlow:
            return "FAILED", f"{way}: more than {SECONDS} s"
        except BaseException:
            return "FAILED", f"{way}: {traceback.format_exc()}"
        if self.subject.checksums and way in DAMAGES and found != self.content:
            return "FAILED", f"{way}: other content than the good file's, and no message"
        return "pixels", way


def _digest(content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()


@contextlib.contextmanager
def _time_limit():  # type: ignore[no-untyped-def]
    def late(signum: int, frame: object) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def main() -> None:
    seed, memory = int(sys.argv[1]), int(sys.argv[2])
    subjects = {subject.name: subject for subject in SUBJECTS}
    cases: dict[str, Case] = {}
    with tempfile.TemporaryDirectory() as scratch:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        for line in sys.stdin:
            name, _, number = line.rstrip("\n").rpartition(" ")
            print(f"begin {line.rstrip()}", flush=True)
            if name not in cases:
                cases[name] = Case(subjects[name], Path(scratch, name.replace(" ", "_")))
            outcome, what = cases[name].run(seed, int(number))
            print(f"end {outcome} {what!r}", flush=True)


if __name__ == "__main__":
    main()
