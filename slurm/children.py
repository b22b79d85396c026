"""Which processes a process has started."""

from pathlib import Path


def children(process: int) -> list[int]:
    """Processes that the main thread of `process` started and that run; none where /proc doesn't tell."""
    try:
        return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []
