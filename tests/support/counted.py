"""A job that records the file system operations of each rank: counted.py FOLDER JOB ARGUMENTS.

Rank N writes `FOLDER/N`, one line per operation on a path: `open data/cells/manifest.json`.
"""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

AUDITED = ("open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.utime")
UNAUDITED = ("stat", "lstat", "access", "readlink")
"""Operations that raise no audit events."""


def note_operations() -> list[str]:
    """Record every operation on a path from now on, in the list that is returned."""
    seen: list[str] = []

    def note(what: str, name: object) -> None:
        if isinstance(name, str | bytes | os.PathLike):
            seen.append(f"{what} {os.path.abspath(os.fsdecode(name))}")

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in AUDITED:
            note(event.removeprefix("os."), arguments[0])

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            note(name, path)
            return function(path, *arguments, **options)

        return call

    sys.addaudithook(audit)
    for name in UNAUDITED:
        setattr(os, name, noted(name, getattr(os, name)))
    return seen


def main(folder: str, job: str, *arguments: str) -> int:
    """Run the job; return its exit code."""
    from jobs.entry import run_job

    target = Path(folder).absolute() / os.environ.get("RANK", "0")
    seen = note_operations()
    try:
        return run_job(importlib.import_module(f"jobs.{job}").main, list(arguments))
    finally:
        target.write_text("\n".join(seen))


def operations_in(notes: Path, folders: Sequence[Path]) -> list[tuple[str, Path]]:
    """A rank's operations, from its file `notes`, on paths in `folders`: (operation, path)."""
    pairs = [line.partition(" ") for line in notes.read_text().splitlines()]
    operations = [(what, Path(path)) for what, _, path in pairs]
    return [item for item in operations if any(item[1].is_relative_to(folder) for folder in folders)]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
