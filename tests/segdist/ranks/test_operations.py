"""File system operations per rank, kept low because thousands of ranks may start at once."""

from collections import Counter
from pathlib import Path

import pytest

from shards.manifest import read_manifest
from tests.support.counted import operations_in
from tests.support.programs import QUIET, ROOT, TINY_NET, run, script
from tests.support.sets import tiny_set

pytestmark = pytest.mark.slow

MOST = 20
"""Limit on a rank's operations in the folders of the set and the run, beyond those on its own shards."""
WORLD_SIZE = 3


def operations(folder: Path, steps: int) -> list[list[tuple[str, Path]]]:
    """Train up to `steps`; return each rank's (operation, file) pairs in the folders of the set and the run."""
    notes = folder / f"notes of {steps}"
    notes.mkdir()
    settings = ["-f", "tiny", "-n", "run", "-b", "8", "--steps", str(steps), "--log-every", "5", *TINY_NET, *QUIET]
    run(script(ROOT / "tests" / "support" / "counted.py", [str(notes), "train", *settings], WORLD_SIZE), folder)
    of_all = (folder / "data", folder / "runs")  # skip Python's module search
    return [operations_in(notes / str(rank), of_all) for rank in range(WORLD_SIZE)]


def test_a_rank_needs_few_operations_beyond_its_own_shards_at_start_and_resume(tmp_path: Path) -> None:
    folder = tiny_set(tmp_path / "data")
    shards = [item for info in read_manifest(folder).shards for item in (info.file, info.index_file)]
    for steps in (20, 30):
        ranks = operations(tmp_path, steps)
        looked_at = Counter(path.name for rank in ranks for what, path in rank if what == "stat")
        assert {looked_at[name] for name in shards} == {1}, "each file's size is one rank's to look at"
        for rank in ranks[1:]:
            beyond = [(what, path) for what, path in rank if path.name not in shards]
            assert 0 < len(beyond) <= MOST, beyond
