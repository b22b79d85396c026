"""The output of all jobs, in one style: a live progress bar in a terminal, occasional plain lines in a log file.

Results and permanent lines go to standard output (`say`); everything transient, such as progress, plus warnings and
errors, goes to standard error. Colors appear only in terminals, and not if NO_COLOR is set.
"""

import contextlib
import errno
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

FIRST_LINE, MOST_BETWEEN = 10.0, 300.0
"""Seconds before the first progress line if the output is not a terminal; the interval doubles up to the second
figure."""

BAR_WIDTH = 16
"""Characters."""

_warned: set[str] = set()
_library = False


@contextlib.contextmanager
def as_library() -> Iterator[None]:
    """Print nothing inside the context, and issue Python warnings; for calls from a user's program."""
    global _library
    before, _library = _library, True
    try:
        yield
    finally:
        _library = before


def outlive_the_terminal() -> None:
    """From now on, problems with standard output and standard error can't end this process.

    With a full disk under a log file, or if the terminal or a reader (`| head`) is gone, output that can't be written
    is dropped. Closing the terminal (SIGHUP) doesn't end the process either, unless something handles that signal.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Unfailing):
            setattr(sys, name, _Unfailing(stream))
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    in_main = threading.current_thread() is threading.main_thread()
    if hangup and in_main and signal.getsignal(hangup) is signal.SIG_DFL:
        signal.signal(hangup, signal.SIG_IGN)


class _Unfailing:
    """A text stream whose `write` and `flush` never fail."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):  # ValueError: the stream is closed
            self._give_up_if_gone()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up_if_gone()

    def __getattr__(self, name: str) -> Any:  # Any: whatever the stream has
        return getattr(self._stream, name)

    def _give_up_if_gone(self) -> None:
        """Stop trying if the terminal or reader is gone for good; a full disk may get room again."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.EIO):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def say(message: str) -> None:
    """Print one line for the user or the log, unbuffered; if the reader is gone (`| head`), the work continues."""
    if _library:
        return
    try:
        print(message, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def warn(message: str) -> None:
    """Print one line on standard error, unbuffered; each message is printed once per process."""
    if _library:
        warnings.warn(message, stacklevel=2)
        return
    if message not in _warned:
        _warned.add(message)
        _show("warning: ", "bold yellow", message)


def show_error(message: str, rank: int = 0) -> None:
    """Print the error that ended the job; ranks other than 0 add their number."""
    _show(f"rank {rank}: error: " if rank else "error: ", "bold red", message)


def show_traceback(error: BaseException, rank: int = 0) -> None:
    """Print an unexpected error's traceback, each line with its rank, in one write, because ranks share a log file."""
    lines = "".join(traceback.format_exception(error)).splitlines(keepends=True)
    prefix = f"rank {rank}: " if rank else ""
    # A single write, because Python prints tracebacks line by line, and the ranks' lines would mix.
    sys.stderr.write("".join(prefix + line for line in lines))
    sys.stderr.flush()


class Progress:
    """Progress with rate and remaining time.

    Use as a context manager; `advance` as often as you like. With `quiet` (or on ranks other than 0) it prints nothing.

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
        self._pause = FIRST_LINE
        self._bar: RichProgress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        self._started = self._shown = time.monotonic()
        if not self.quiet and sys.stderr.isatty():
            self._bar = RichProgress(
                TextColumn("{task.description}", style="bold"),
                BarColumn(bar_width=BAR_WIDTH),
                MofNCompleteColumn() if isinstance(self.total, int) else TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.fields[rate]}", style="cyan"),
                TimeRemainingColumn(compact=True),
                TextColumn("left", style="dim"),
                # One line in any terminal: the note is truncated to the remaining width.
                TextColumn("{task.fields[note]}", style="dim", table_column=Column(no_wrap=True, ratio=1)),
                console=Console(stderr=True),
                # Lines printed meanwhile appear above the bar, but a redirected standard output is left alone.
                redirect_stdout=sys.stdout.isatty(),
                expand=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total, rate="", note="")
            self._bar.update(self._task, completed=self._done)
        return self

    def advance(self, amount: float = 1, note: str = "") -> None:
        """`amount` more units are done; `note` is a short text shown after the figures."""
        self._done += amount
        self._note = note or self._note
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, rate=self._rate_text(now), note=self._note)
        elif not self.quiet and now - self._shown >= self._pause:
            self._shown, self._pause = now, min(2 * self._pause, MOST_BETWEEN)
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
        return f"{rate:,.0f} {self.unit}/s" if rate >= 100 else f"{rate:.3g} {self.unit}/s" if rate > 0 else ""


def clock(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _show(head: str, style: str, message: str) -> None:
    # A new console each time, since standard error may have been redirected. Soft wrap keeps a log line on one line.
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble((head, style), message))
    console.file.flush()
