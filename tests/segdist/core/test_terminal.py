"""How jobs print to a log file and to a terminal."""

import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segdist.core import terminal
from segdist.core.terminal import Progress, clock, show_error, show_traceback, warn

SCRIPT = """
from segdist.core.terminal import Progress, say, warn
with Progress("cutting", total=3, unit="images") as progress:
    for _ in range(3):
        say("a line")
        warn("a warning")
        progress.advance(note="a.png")
"""


def run_in_terminal(script: str, stdout_too: bool = True, width: int = 120) -> tuple[str, str]:
    """What a terminal shows, and what redirected standard output contains."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=slave,
        stdout=slave if stdout_too else subprocess.PIPE,
        stderr=slave,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": str(width)},
    )
    os.close(slave)
    seen = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(master)
    said = process.communicate()[0] or b""
    return seen.decode(), said.decode()


def test_log_file_gets_plain_lines_at_growing_intervals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Progress("training", total=1000, unit="steps") as progress:
        for _ in range(100):
            now += 1.0
            progress.advance(note="loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "training: 10/1000 steps (1 %), 1 steps/s, 16:30 left, loss 0.5",
        "training: 30/1000 steps (3 %), 1 steps/s, 16:10 left, loss 0.5",
        "training: 70/1000 steps (7 %), 1 steps/s, 15:30 left, loss 0.5",
    ]


def test_rate_and_remaining_time_ignore_work_done_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    progress = Progress("training", total=1000, unit="steps", done=900)
    progress.advance(20)
    assert progress.line(10.0) == "training: 920/1000 steps (92 %), 2 steps/s, 0:40 left"


def test_quiet_progress_prints_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "FIRST_LINE", 0.0)
    with Progress("training", total=3, unit="steps", quiet=True) as progress:
        progress.advance(3)
    assert capsys.readouterr() == ("", "")


def test_a_repeated_warning_is_printed_once_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    message = "something [not] quite right; " * 12 + "mend it"
    for _ in range(3):
        warn(message)
    assert capsys.readouterr().err == f"warning: {message}\n"


def test_errors_from_other_ranks_name_the_rank(capsys: pytest.CaptureFixture[str]) -> None:
    show_error("no such file")
    show_error("out of memory", rank=3)
    assert capsys.readouterr().err == "error: no such file\nrank 3: error: out of memory\n"


def test_every_traceback_line_from_another_rank_names_the_rank(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        show_traceback(error, rank=2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 3
    assert all(line.startswith("rank 2: ") for line in lines)


def test_terminal_shows_a_bar_with_rate_and_lines_above_it() -> None:
    seen, _ = run_in_terminal(SCRIPT)
    assert "cutting" in seen
    assert "3/3" in seen
    assert "images/s" in seen
    assert "a.png" in seen
    assert seen.count("a line") == 3
    assert seen.count("a warning") == 1


@pytest.mark.parametrize("width", [60, 80, 110])
def test_the_bar_fits_on_one_line_in_any_terminal(width: int) -> None:
    script = """
from segdist.core.terminal import Progress
with Progress("training", total=600, unit="steps") as progress:
    progress.advance(150, note="epoch 12, loss 0.5436, mIoU 0.6485, and whatever else there is to be said of it")
"""
    seen, _ = run_in_terminal(script, width=width)
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen).replace("\r", "\n").strip().splitlines()[-1].rstrip()
    assert last.startswith("training")
    assert len(last) <= width
    assert last.endswith("…")


def test_redirected_standard_output_holds_only_the_printed_lines() -> None:
    seen, said = run_in_terminal(SCRIPT, stdout_too=False)
    assert said == "a line\n" * 3
    assert "3/3" in seen


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")])
def test_durations_are_formatted_as_a_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_a_job_survives_a_closed_output_pipe(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from segdist.core.terminal import say\n"
        "for number in range(10_000):\n    say('line')\n"
        "Path(sys.argv[1]).touch()"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "end")], stdout=subprocess.PIPE) as job:
        assert job.stdout is not None
        job.stdout.readline()
        job.stdout.close()
    assert job.returncode == 0
    assert (tmp_path / "end").exists()
