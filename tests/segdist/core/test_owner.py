"""Folder ownership, tested with real processes that compete, die and restart."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from segdist.core import owner
from segdist.core.errors import UserError
from segdist.core.owner import owned
from segdist.core.paths import OWNERS

ROOT = Path(__file__).parents[3]
HOLD = (
    "import sys; from pathlib import Path; from segdist.core.owner import owned\n"
    "with owned(Path(sys.argv[1]), sys.argv[2], group=sys.argv[3]):\n"
    "    print('in', flush=True); sys.stdin.read()\n"
)


def holder(folder: Path, job: str = "segdist train", group: str = "") -> "subprocess.Popen[str]":
    """A process that owns `folder` until its standard input closes."""
    words = [sys.executable, "-c", HOLD, str(folder), job, group]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)


@contextmanager
def held(
    folder: Path, job: str = "segdist train", group: str = "", **environ: str
) -> Iterator["subprocess.Popen[str]"]:
    """Another process owns `folder` inside the `with` block."""
    with holder(folder, job, group, **environ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        yield process
        process.communicate("")


def test_a_second_job_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    with held(tmp_path, "segdist train") as process, pytest.raises(UserError) as error, owned(tmp_path, "other"):
        pass
    assert f"{tmp_path}: in use by segdist train (process {process.pid} on {socket.gethostname()}" in str(error.value)
    assert f"{owner.STALE_AFTER:.0f} s after its last sign of life" in str(error.value)
    # The owner has exited and left nothing behind.
    assert list(tmp_path.iterdir()) == []
    with owned(tmp_path, "other"), pytest.raises(UserError, match="in use by other"), owned(tmp_path, "third"):
        pass


def test_owners_in_one_group_share_a_folder_and_keep_others_out(tmp_path: Path) -> None:
    with held(tmp_path, group="recipe"), held(tmp_path, group="recipe"), owned(tmp_path, "builder", group="recipe"):
        for group in ("", "another recipe"):
            with pytest.raises(UserError, match="in use by"), owned(tmp_path, "other", group=group):
                pass
    assert list(tmp_path.iterdir()) == []


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    with held(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert list((tmp_path / OWNERS).iterdir())
        with owned(tmp_path, "again"):
            assert len(list((tmp_path / OWNERS).iterdir())) == 1


def test_leftovers_of_a_killed_group_member_are_removed(tmp_path: Path) -> None:
    with held(tmp_path, group="recipe") as process:
        process.kill()
        process.wait()
        with owned(tmp_path, "again", group="recipe"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_forked_children_do_not_keep_the_lock(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from segdist.core.owner import owned\n"
        "with owned(Path(sys.argv[1]), 'parent'):\n"
        "    child = os.fork()\n"
        "    if child == 0: time.sleep(60)\n"
        "    print(child, flush=True); time.sleep(60)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
        process.wait()
        try:
            with owned(tmp_path, "again"):
                os.kill(child, 0)  # the child is still alive
        finally:
            os.kill(child, signal.SIGKILL)


def test_of_many_simultaneous_processes_exactly_one_wins(tmp_path: Path) -> None:
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        processes = [holder(folder) for _ in range(6)]
        # The winner holds the folder until all have tried.
        inside = [process for process in processes if process.stdout and process.stdout.readline() == "in\n"]
        said = [process.communicate("")[1] for process in processes]
        assert len(inside) == 1
        assert sum("in use by segdist train" in text for text in said) == 5
        assert not list(folder.glob("*"))  # the folder is removed only if its creator leaves last


def test_two_simultaneous_requests_do_not_both_succeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look, both_ask, both_know = owner._conflict, threading.Barrier(2), threading.Barrier(2)

    def look_when_both_ask(*arguments: Any) -> Any:
        both_ask.wait(60)
        seen = look(*arguments)
        time.sleep(0.3)  # neither owns it yet when the other checks
        return seen

    monkeypatch.setattr(owner, "_conflict", look_when_both_ask)

    def enter(job: str) -> str:
        try:
            with owned(tmp_path, job):
                both_know.wait(60)
                return "in"
        except UserError as error:
            both_know.wait(60)
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        ends = sorted(pool.map(enter, ("one", "two")))
    assert ends[0].startswith(f"{tmp_path}: in use by")
    assert ends[1] == "in"


@pytest.mark.parametrize("step", ["_read", "_lives"])
def test_a_request_that_succeeds_while_it_is_examined_is_not_overlooked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    other = owner._OwnRecord(tmp_path, owner._describe("the first job", ""))
    examine = getattr(owner, step)

    def succeed_first(path: Path, *others: Any) -> Any:
        if path == other.path and path.suffix == owner.ASKING:
            other.own()
        return examine(path, *others)

    monkeypatch.setattr(owner, step, succeed_first)
    with pytest.raises(UserError, match="in use by the first job"), owned(tmp_path, "the second"):
        pass
    other.leave()


def test_the_folder_of_records_may_vanish_while_another_job_creates_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, calls = Path.mkdir, []

    def vanish_once(path: Path, *arguments: Any, **keywords: Any) -> None:
        calls.append(path)
        if len(calls) == 1:  # mkdir found it, but then it was no longer a folder
            raise FileExistsError(17, "File exists", str(path))
        create(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "mkdir", vanish_once)
    with owned(tmp_path, "segdist train"):
        assert (tmp_path / OWNERS).is_dir()
    assert calls


def test_a_job_can_wait_for_another_to_end(tmp_path: Path) -> None:
    with held(tmp_path) as process:
        assert process.stdin is not None
        process.stdin.close()
        with owned(tmp_path, "submit", wait=60):
            pass
        process.stdin = None


def elsewhere(folder: Path, **changes: object) -> Path:
    """The record of an owner on another machine that no longer shows signs of life."""
    values = {
        "format_version": 1, "job": "segdist train", "group": "", "host": "gpu7", "machine": "another", "process": 17,
        "slurm_job": "", "slurm_restart": 0, "since": 0.0,
    }  # fmt: skip
    (folder / OWNERS).mkdir(parents=True)
    path = folder / OWNERS / "00000000000000000001-0123abcd.json"
    path.write_text(json.dumps(values | changes))
    return path


def test_a_remote_owner_without_a_heartbeat_counts_as_dead(tmp_path: Path) -> None:
    path = elsewhere(tmp_path)
    os.utime(path, (1.0, 1.0))
    with owned(tmp_path, "again"):
        assert not path.exists()


def test_a_fresh_heartbeat_is_watched_until_it_beats_or_goes_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = elsewhere(tmp_path)
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))

    monkeypatch.setattr(owner.time, "sleep", sleep)
    with pytest.raises(UserError, match="process 17 on gpu7"), owned(tmp_path, "again"):
        pass
    assert len(looks) == 2
    monkeypatch.setattr(owner, "STALE_AFTER", 0.0)
    with owned(tmp_path, "again"):
        assert not path.exists()


def test_an_owner_updates_its_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "BEAT", 0.01)
    with owned(tmp_path, "busy"):
        (path,) = (tmp_path / OWNERS).iterdir()
        os.utime(path, (1.0, 1.0))
        while path.stat().st_mtime < 2:
            pass


def test_an_owner_presumed_dead_exits_when_it_wakes_up(tmp_path: Path) -> None:
    code = HOLD.replace("import sys;", "import sys; from segdist.core import owner; owner.BEAT = 0.05;")
    words = [sys.executable, "-c", code, str(tmp_path), "sleeper", ""]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (path,) = (tmp_path / OWNERS).iterdir()
        path.rename(path.with_name("00000000000000000002-other.json"))  # replaced atomically
        assert process.wait(60) == 1
        assert process.stderr is not None
        assert "another job has taken over" in process.stderr.read()


def test_a_requeued_slurm_job_takes_over_from_its_earlier_start_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = elsewhere(tmp_path, slurm_job="big/99", slurm_restart=1)
    monkeypatch.setattr(owner.time, "sleep", lambda seconds: pytest.fail("it waits"))
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "big")
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    with owned(tmp_path, "segdist train"):
        assert not path.exists()


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    words = r"(file|link): can't be written \(.*, in \.owners/, .*\); make room .*, or choose another folder"
    with pytest.raises(UserError, match=words), owned(tmp_path / "file", "segdist train"):
        pass
    with pytest.raises(UserError, match=words), owned(tmp_path / "link", "segdist train"):
        pass


def test_a_record_from_a_newer_program_is_not_ignored(tmp_path: Path) -> None:
    elsewhere(tmp_path, format_version=2)
    with pytest.raises(UserError, match="format version 2, written by a newer segdist"), owned(tmp_path, "old"):
        pass
