"""`segdist bench` as real processes, on a tiny set."""

import signal
from pathlib import Path

import pytest

from segdist.core.exit_codes import INTERRUPTED, USAGE
from tests.support.programs import ROOT, job, processes, run, start, wait_until
from tests.support.sets import contents, tiny_set

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the set data/tiny, and an empty one for temporary files."""
    folder = tmp_path_factory.mktemp("bench")
    tiny_set(folder / "data")
    (folder / "tmp").mkdir()
    return folder


def test_one_and_two_ranks_are_measured_and_nothing_is_left(place: Path) -> None:
    before = contents(place)
    told = run(job("bench", ["-f", "tiny", "--processes", "2", "--device", "cpu"]), place, TMPDIR=str(place / "tmp"))
    lines = told.stdout.splitlines()
    heading = next(number for number, line in enumerate(lines) if line.startswith("ranks  threads/GPUs"))
    one, two = (line.split() for line in lines[heading + 1 : heading + 3])
    assert [one[0], one[5], one[6]] == ["1", "100%", "-"]
    assert two[0] == "2"
    for ms, rate in ((row[3], row[4]) for row in (one, two)):  # the batch is 16 on one rank and on two
        assert float(ms) / 1000 * float(rate) == pytest.approx(16, rel=0.02)
    assert float(two[6]) > 0
    assert any(line.startswith("inference  ") for line in lines)
    assert lines[-1].startswith("Training on 2 ranks is limited by ")
    assert contents(place) == before
    assert not list((place / "tmp").iterdir())


def test_ctrl_c_ends_it_and_its_ranks_and_nothing_is_left(place: Path) -> None:
    log = place / "log"
    process = start(job("bench", ["-f", "tiny", "--processes", "2"]), place, log, TMPDIR=str(place / "tmp"))
    rank = str(ROOT / "jobs" / "bench_ranks.py")
    wait_until(lambda: list(processes(rank, place)) or process.poll() is not None, 180)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == INTERRUPTED, log.read_text()
    assert not list(processes(rank, place))
    assert "interrupted" in log.read_text()
    assert not list((place / "tmp").iterdir())


def test_under_torchrun_it_is_refused(place: Path) -> None:
    refused = run(job("bench", ["-f", "tiny"], ranks=2), place, check=False)
    assert refused.returncode != 0
    assert "run it once, without torchrun or srun" in refused.stderr


def test_a_set_that_does_not_exist_is_refused(place: Path) -> None:
    refused = run(job("bench", ["-f", "nosuch"]), place, check=False)
    assert refused.returncode == USAGE
    assert "no such shard set" in refused.stderr
