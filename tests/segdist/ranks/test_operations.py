"""What a rank asks of the file system that all ranks share: thousands of ranks start at the same moment."""

from collections import Counter
from pathlib import Path

import pytest

from shards.manifest import read_manifest
from tests.support.programs import QUIET, ROOT, TINY_NET, run, script
from tests.support.sets import tiny_set

pytestmark = pytest.mark.slow

MOST = 20
"""Operations of a rank in the folders of set and run, beyond those on its own shards."""
WORLD_SIZE = 3


def operations(folder: Path, steps: int) -> list[list[tuple[str, Path]]]:
    """Train up to `steps`; each rank's operations in the folders of set and run: what, and on which file."""
    notes = folder / f"notes of {steps}"
    notes.mkdir()
    settings = ["-f", "tiny", "-n", "run", "-b", "8", "--steps", str(steps), "--log-every", "5", *TINY_NET, *QUIET]
    run(script(ROOT / "tests" / "support" / "counted.py", [str(notes), "train", *settings], WORLD_SIZE), folder)
    found = []
    for rank in range(WORLD_SIZE):
        lines = [line.partition(" ") for line in (notes / str(rank)).read_text().splitlines()]
        places = [(what, Path(name)) for what, _, name in lines]
        of_all = (folder / "data", folder / "runs")  # not where Python looks for modules
        found.append([item for item in places if any(item[1].is_relative_to(shared) for shared in of_all)])
    return found


def test_a_rank_asks_for_little_beyond_its_own_shards_at_start_and_resume(tmp_path: Path) -> None:
    folder = tiny_set(tmp_path / "data")
    shards = [item for info in read_manifest(folder).shards for item in (info.file, info.index_file)]
    for steps in (20, 30):
        ranks = operations(tmp_path, steps)
        looked_at = Counter(path.name for rank in ranks for what, path in rank if what == "stat")
        assert {looked_at[name] for name in shards} == {1}, "each file's size is one rank's to look at"
        for rank in ranks[1:]:
            beyond = [(what, path) for what, path in rank if path.name not in shards]
            assert 0 < len(beyond) <= MOST, beyond
