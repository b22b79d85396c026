"""Losing the terminal, the log or disk space costs no work."""

import errno
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from segdist.core.errors import UserError
from segdist.core.files import full_disk_named, remove_leftovers, whole_file
from segdist.runs.record import read_rows
from tests.support.inference_parts import checksums, write_images, write_model
from tests.support.programs import ROOT, TINY_NET, environment, job, run, start, wait_until
from tests.support.sets import tiny_set

CHATTY = ["--wandb", "off"]


def to_a_full_disk(command: list[str], cwd: Path) -> int:
    """Run with both outputs on a full disk; return the exit code."""
    with open("/dev/full", "w") as full:
        return subprocess.run(command, cwd=cwd, env=environment(), stdout=full, stderr=full, check=False).returncode


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_under_the_log_stops_no_job(tmp_path: Path) -> None:
    """Neither the first line, nor a later one, nor the flush when Python exits."""
    made = to_a_full_disk(job("make_shards", ["-f", "log", "--patches.size", "32", "--synthetic.train", "4"]), tmp_path)
    trained = to_a_full_disk(job("train", ["-f", "log", "--steps", "4", *TINY_NET, *CHATTY]), tmp_path)
    write_images(tmp_path / "images", {"one": (40, 40)})
    inferred = to_a_full_disk(job("infer", ["-m", "log", "-i", "images", "-o", "out", *CHATTY]), tmp_path)
    assert (made, trained, inferred) == (0, 0, 0)
    assert read_rows(tmp_path / "runs" / "log" / "events.jsonl")[-1]["what"] == "finished"
    assert (tmp_path / "out" / "masks" / "one.png").is_file()


def test_logging_resumes_once_there_is_space_again(tmp_path: Path) -> None:
    """A file-size limit simulates the full disk. The line that didn't fit is lost or written with the next one."""
    code = (
        "import resource, signal; from segdist.core.terminal import outlive_the_terminal, say;"
        "outlive_the_terminal(); signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "say('first'); resource.setrlimit(resource.RLIMIT_FSIZE, (6, resource.RLIM_INFINITY)); say('second');"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)); say('third')"
    )
    with (tmp_path / "log").open("w") as log:
        subprocess.run([sys.executable, "-c", code], stdout=log, env=environment(), check=True)
    assert (tmp_path / "log").read_text().splitlines() in (["first", "third"], ["first", "second", "third"])


@pytest.mark.slow
def test_losing_the_terminal_does_not_stop_training(tmp_path: Path) -> None:
    """The terminal closes while training shows a progress bar, and SIGHUP arrives as well."""
    tiny_set(tmp_path / "data")
    master, slave = pty.openpty()
    command = job("train", ["-f", "tiny", "--steps", "60", "--checkpoint.every-steps", "10", *TINY_NET, *CHATTY])
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    folder = tmp_path / "runs" / "tiny"
    while not list((folder / "checkpoints").glob("step-*.pt")):
        os.read(master, 65536)
        assert process.poll() is None
    os.close(master)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=120) == 0
    assert read_rows(folder / "events.jsonl")[-1]["what"] == "finished"


@pytest.mark.slow
def test_inference_on_a_full_disk_ends_with_one_sentence_and_can_resume(tmp_path: Path) -> None:
    write_model(tmp_path / "runs" / "small")
    write_images(tmp_path / "images")
    arguments = ["-m", "small", "-i", "images", "--output.probabilities", "float32", "--quiet", "--wandb", "off"]
    run(job("infer", [*arguments, "-o", "whole"]), tmp_path)
    limited = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY));"
    # A file-size limit gives "File too large", which simulates "No space left".
    limited += "import errno, segdist.core.files as files; files.NO_ROOM += (errno.EFBIG,);"
    limited += "from jobs.entry import run_job; from jobs.infer import main; sys.exit(run_job(main, sys.argv[1:]))"
    full = run([sys.executable, "-c", limited, *arguments, "-o", "full"], tmp_path, check=False)
    assert full.returncode == 2, full.stderr
    assert full.stderr.count("\n") == 1
    assert "make room there; the same command then resumes" in full.stderr
    run(job("infer", [*arguments, "-o", "full"]), tmp_path)
    assert checksums(tmp_path / "full") == checksums(tmp_path / "whole")
    assert not list((tmp_path / "full").rglob("*.tmp"))


def test_only_a_full_disk_is_reported_as_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No space left on device; make room there"), full_disk_named(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match="Input/output"), full_disk_named(tmp_path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_files_of_living_processes_are_not_leftovers(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from segdist.core.files import whole_file\n"
        "with whole_file(Path('shard.tar')): Path('ready').touch(); time.sleep(600)"
    )
    process = start([sys.executable, "-c", code], tmp_path, tmp_path / "log", PYTHONPATH=str(ROOT))
    wait_until((tmp_path / "ready").exists)
    (tmp_path / "inside").mkdir()
    with whole_file(tmp_path / "inside" / "other"):
        remove_leftovers(tmp_path, deep=True)
        assert len(list(tmp_path.rglob("*.tmp"))) == 2  # both writers are alive
    process.kill()
    process.wait()
    remove_leftovers(tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_file_is_no_leftover_until_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may look for leftovers just before the finished file is renamed."""
    rename = Path.replace

    def remove_leftovers_first(path: Path, target: Path) -> Path:
        remove_leftovers(tmp_path)
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", remove_leftovers_first)
    with whole_file(tmp_path / "a") as file:
        file.write(b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_a_writer_whose_file_was_removed_as_a_leftover_creates_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may remove the file between its creation and the lock."""
    import fcntl

    real, calls = fcntl.flock, []

    def first_too_late(file: object, operation: int) -> None:
        if not calls:
            next(tmp_path.glob(".a.*.tmp")).unlink()
        calls.append(operation)
        real(file, operation)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", first_too_late)
    with whole_file(tmp_path / "a") as file:
        file.write(b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"
    assert len(calls) == 2


def test_long_names_can_be_written(tmp_path: Path) -> None:
    with whole_file(tmp_path / ("ä" * 127)) as file:
        file.write(b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["ä" * 127]
