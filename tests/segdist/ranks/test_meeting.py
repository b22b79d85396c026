"""Ranks started by Slurm find each other through a file in the job's folder; tested without Slurm."""

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from segdist.core.errors import UserError
from segdist.ranks.launchers import RankEnvironment
from segdist.ranks.meeting import meet
from tests.support.programs import ROOT, environment

RANK = """
import sys
from pathlib import Path
from segdist.ranks.process_group import ranks
with ranks("cpu", threads=1, meeting_place=Path(sys.argv[1])) as these:
    print(these.gather((sys.argv[2], these.rank)))
"""


def start(folder: Path, job: str, rank: int, said: str = "", **changes: str) -> "subprocess.Popen[str]":
    """Start one of two ranks with the variables that srun sets."""
    step = {"SLURM_JOB_ID": job, "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_STEP_NODELIST": "127.0.0.1"}
    environ = environment(**step, **own, **changes)
    words = [sys.executable, "-c", RANK, str(folder), said or job]
    return subprocess.Popen(words, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_jobs_whose_ids_map_to_one_port_do_not_meet(tmp_path: Path) -> None:
    jobs = ("7", "12007")  # 12,000 apart: a port computed from the number would be the same
    started = [start(tmp_path, job, rank) for job in jobs for rank in (1, 0)]
    said = [process.communicate(timeout=120)[0].strip() for process in started]
    assert said == [str([(job, 0), (job, 1)]) for job in jobs for _ in range(2)]
    assert not (tmp_path / ".meeting").exists()


def test_a_restart_ignores_the_address_of_the_previous_start(tmp_path: Path) -> None:
    left = tmp_path / ".meeting" / "7.0.0.json"
    left.parent.mkdir()
    left.write_text(json.dumps({"format_version": 1, "host": "127.0.0.1", "port": 1}))
    started = [start(tmp_path, "7", rank, "again", SLURM_RESTART_COUNT="1") for rank in (1, 0)]
    said = [process.communicate(timeout=120)[0].strip() for process in started]
    assert said == [str([("again", 0), ("again", 1)])] * 2
    assert not left.exists()  # leftovers of a killed start are removed


def test_a_rank_that_never_finds_rank_0_says_where_it_looked(tmp_path: Path) -> None:
    alone = RankEnvironment("slurm", 1, 1, 2, 2, "127.0.0.1", 0, "7.0.0")
    with pytest.raises(UserError, match=r"7\.0\.0\.json: rank 0 wrote no address there that responds") as told:
        meet(tmp_path, alone, timedelta(seconds=1))
    assert told.value.on_this_rank


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    first = RankEnvironment("slurm", 0, 0, 2, 2, "127.0.0.1", 0, "7.0.0")
    with pytest.raises(UserError, match=r"file/\.meeting/7\.0\.0\.json: can't be written"):
        meet(tmp_path / "file", first, timedelta(seconds=5))
