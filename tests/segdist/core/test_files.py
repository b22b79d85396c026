"""A file is either complete or absent, whatever interrupts the write."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segdist.core.files import size_and_time, whole_file, write_json, write_json_rows

WRITER = """
import os, signal, sys
from pathlib import Path
from segdist.core.files import whole_file
with whole_file(Path(sys.argv[1])) as file:
    file.write(b"new" * 100_000)
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("before", [None, b"old"])
def test_the_old_file_survives_a_kill_during_a_write(tmp_path: Path, before: bytes | None) -> None:
    path = tmp_path / "a.tar"
    if before is not None:
        path.write_bytes(before)
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", WRITER, str(path)], check=False, cwd=root)
    assert done.returncode == -signal.SIGKILL
    assert (path.read_bytes() if path.exists() else None) == before


def test_an_error_during_a_write_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    before = path.read_bytes()

    def interrupted() -> None:
        with whole_file(path) as file:
            file.write(b"half")
            assert path.read_bytes() == before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == {"a.json": before}


def test_concurrent_writers_do_not_mix_their_data(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with whole_file(path) as first, whole_file(path) as second:
        first.write(b"1" * 10)
        second.write(b"2" * 5)
    assert path.read_bytes() == b"1" * 10


def test_a_folders_size_and_time_cover_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_bytes(bytes(10))
    (tmp_path / "b").write_bytes(bytes(5))
    later = time.time_ns() + 10**12
    os.utime(tmp_path / "deep" / "a", ns=(later, later))
    assert size_and_time(tmp_path) == (15, later)
    assert size_and_time(tmp_path / "b")[0] == 5


def test_a_long_list_has_a_line_per_item(tmp_path: Path) -> None:
    rows = [{"name": "ö", "counts": [number, None, 0.1]} for number in range(3)]
    value = {"rows": rows, "mean": 0.1, "classes": ["a", "b"]}
    write_json_rows(tmp_path / "long.json", value, "rows")
    text = (tmp_path / "long.json").read_text()
    assert json.loads(text) == value
    assert [json.loads(line.rstrip(",")) for line in text.splitlines()[-5:-2]] == rows


def test_an_empty_list_of_rows_is_json_too(tmp_path: Path) -> None:
    write_json_rows(tmp_path / "none.json", {"rows": []}, "rows")
    assert json.loads((tmp_path / "none.json").read_text()) == {"rows": []}


def test_not_a_number_is_refused_in_a_row(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json_rows(tmp_path / "nan.json", {"rows": [{"score": float("nan")}]}, "rows")
    assert not (tmp_path / "nan.json").exists()
