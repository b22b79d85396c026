"""Ranks end without threads of the process group, which abort the process if the interpreter ends before them."""

import sys
from pathlib import Path

import pytest

from tests.support.programs import QUIET, ROOT, TINY_NET, run, script
from tests.support.sets import tiny_set

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads the threads from /proc")]


@pytest.mark.parametrize("engine", [[], ["--exact"]])
def test_no_thread_of_the_process_group_is_left_when_a_rank_ends(tmp_path: Path, engine: list[str]) -> None:
    tiny_set(tmp_path / "data")
    settings = ["-f", "tiny", "-n", "run", "-b", "8", "--steps", "2", *TINY_NET, *QUIET, *engine]
    threads = tmp_path / "threads"
    threads.mkdir()
    run(script(ROOT / "tests" / "support" / "threads_at_end.py", [str(threads), "train", *settings], 2), tmp_path)
    names = [(threads / str(rank)).read_text().split() for rank in range(2)]
    assert all("python" in found for found in names)
    assert [name for found in names for name in found if "gloo" in name] == []
