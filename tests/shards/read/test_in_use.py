"""Damage to a shard while it is in use is reported with its name."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shards.manifest import read_manifest
from shards.read.background_check import BackgroundCheck
from shards.read.reader import ShardSet
from tests.support.programs import QUIET, TINY_NET, environment, job, run, start, wait_until
from tests.support.sets import tiny_set

TRUNCATED = """
import os, sys
import numpy as np
from shards.read.reader import ShardSet
shard_set = ShardSet("data/tiny")
largest = int(np.argmax(shard_set.sizes("train")))
one, first = np.array([largest]), np.array([0])
shard_set.read("train", one, first)
path = shard_set.folder / shard_set.manifest.of_split("train")[largest].file
os.truncate(path, 4096)
last = np.array([shard_set.sizes("train")[largest] - 1])
shard_set.read("train", one, last)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signals of other systems are laid out otherwise")
@pytest.mark.parametrize("where", ["main thread", "another thread"])
def test_a_shard_truncated_while_it_is_read_is_named(tmp_path: Path, where: str) -> None:
    tiny_set(tmp_path / "data")
    code = TRUNCATED
    if where == "another thread":
        code += "\n"
        code = code.replace('shard_set.read("train", one, last)', "") + (
            "import threading\nthread = threading.Thread(target=shard_set.read, args=('train', one, last))\n"
            "thread.start(); thread.join()"
        )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert re.match(r"error: data/tiny/train-0000\d\.tar: was truncated, or became unreadable, while", done.stderr)
    assert done.stderr.count("\n") == 1


def test_silent_damage_is_found_in_the_background(tmp_path: Path) -> None:
    """One pixel changes, while sizes, headers and file ends stay valid, so training alone would not notice."""
    folder = tiny_set(tmp_path / "data", shard_mb=1)
    shard_set = ShardSet(folder)
    info = read_manifest(folder).of_split("train")[0]
    path = folder / info.file
    content = bytearray(path.read_bytes())
    content[shard_set.layout.image_offset + 5] ^= 1
    path.write_bytes(content)
    found = []
    for rank in range(2):
        check = BackgroundCheck([shard_set], rank, 2)
        check.start()
        wait_until(lambda: check.problem or check.checked == len(check._mine))  # noqa: B023
        found.append(check.problem)
    assert [problem.startswith(f"{path}: damaged") for problem in found].count(True) == 1
    assert found.count("") == 1


@pytest.mark.slow
def test_training_stops_at_silent_damage_and_names_the_shard(tmp_path: Path) -> None:
    folder = tiny_set(tmp_path / "data")
    path = folder / "val-00000.tar"
    content = bytearray(path.read_bytes())
    content[ShardSet(folder).layout.image_offset + 5] ^= 1
    path.write_bytes(content)
    command = ["-f", "tiny", "--steps", "100000", "--checkpoint.every-steps", "5", *TINY_NET, *QUIET]
    done = run(job("train", command), tmp_path, check=False)
    assert done.returncode == 2
    assert "error: data/tiny/val-00000.tar: damaged" in done.stderr


@pytest.mark.slow
def test_an_overwritten_shard_is_named_when_its_labels_are_invalid(tmp_path: Path) -> None:
    folder = tiny_set(tmp_path / "data")
    command = ["-f", "tiny", "--steps", "100000", *TINY_NET, *QUIET]
    log = tmp_path / "log"
    process = start(job("train", command), tmp_path, log)
    wait_until((tmp_path / "runs" / "tiny" / "events.jsonl").exists)
    layout = ShardSet(folder).layout
    for info in read_manifest(folder).of_split("train"):
        with (folder / info.file).open("r+b") as file:  # in place, so the mapping changes too
            for record in range(info.samples):
                file.seek(record * layout.stride + layout.mask_offset)
                file.write(np.full(layout.mask_bytes, 96, np.uint8).tobytes())
    assert process.wait(timeout=120) == 2
    text = log.read_text()
    assert re.search(r"train-\d{5}\.tar", text)
    assert "Traceback" not in text
