"""List the child processes of a process."""

from pathlib import Path


def children(process: int) -> list[int]:
    """Running processes started by the main thread of `process`; none if /proc doesn't say."""
    try:
        return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []
