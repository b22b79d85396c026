"""What a job shows while it works: a live bar in a terminal, a plain line now and then in a log file."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

LOG_INTERVAL = 10.0
"""Seconds between two progress lines where the output is no terminal."""


def say(message: str) -> None:
    """One line for the person or the log, at once."""
    print(message, flush=True)


def warn(message: str) -> None:
    """One line on standard error, at once."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


class Progress:
    """Progress with rate and remaining time.

    Use as a context manager; `advance` as often as you like. With `quiet` (or on ranks other than 0) it says nothing.

        with Progress("cutting patches", total=110, unit="images") as progress:
            for image in images:
                ...
                progress.advance()
    """

    def __init__(self, label: str, total: float, unit: str, *, quiet: bool = False, done: float = 0) -> None:
        self.label, self.total, self.unit, self.quiet = label, total, unit, quiet
        self._first = self._done = done
        self._note = ""
        self._started = self._shown = time.monotonic()
        self._bar: RichProgress | None = None

    def __enter__(self) -> Self:
        self._started = self._shown = time.monotonic()
        if not self.quiet and sys.stderr.isatty():
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn() if isinstance(self.total, int) else TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("<"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total, rate="", note="")
            self._bar.update(self._task, completed=self._done)
        return self

    def advance(self, amount: float = 1, note: str = "") -> None:
        """`amount` more units are done; `note` is a short text that is shown behind the figures."""
        self._done += amount
        self._note = note or self._note
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, rate=self._rate_text(now), note=self._note)
        elif not self.quiet and now - self._shown >= LOG_INTERVAL:
            self._shown = now
            print(self.line(now), file=sys.stderr, flush=True)

    def line(self, now: float) -> str:
        """The plain form: `training: 120/450 steps (27 %), 2.1 steps/s, 2:37 left`."""
        parts = [f"{self.label}: {self._done:.6g}/{self.total:.6g} {self.unit} ({self._percent()} %)"]
        if rate := self._rate_text(now):
            seconds = (self.total - self._done) / self._rate(now)
            parts += [rate, f"{clock(seconds)} left"]
        return ", ".join([*parts, self._note] if self._note else parts)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _percent(self) -> int:
        return int(100 * self._done / self.total) if self.total else 100

    def _rate(self, now: float) -> float:
        return (self._done - self._first) / max(now - self._started, 1e-9)

    def _rate_text(self, now: float) -> str:
        rate = self._rate(now)
        return f"{rate:.3g} {self.unit}/s" if rate > 0 else ""


def clock(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
