"""What happens to a job at each kind of interruption, with a job that only counts; on the real Slurm of the fixture."""

import subprocess
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, log, place, standing, toy, wait_for_end, wait_until

pytestmark = pytest.mark.slow


def reached(folder: Path, step: int) -> bool:
    """Whether the counting job has come to `step`."""
    return (folder / "steps" / str(step)).exists()


def counting(folder: Path, last: int, pause: float = 0.5, progress: str = "steps/*", **options: object):  # type: ignore[no-untyped-def]
    """The job that counts; its steps are its progress."""
    return toy("count", folder, last, pause, progress=(str(folder / progress),), **options)


def test_a_job_that_is_told_to_stop_is_requeued_by_submitit_and_continues(cluster: Cluster, tmp_path: Path) -> None:
    record = place("count", counting(tmp_path, 12), nodes=2, tasks_per_node=2)
    wait_until("it counts", lambda: reached(tmp_path, 3))
    subprocess.run(["scancel", "--signal=USR2", record.job_id], check=True)
    end = wait_for_end(tmp_path, "count")
    assert (end.state, end.starts, end.finished) == ("COMPLETED", 2, True)
    assert "Requeued job" in log(tmp_path)
    assert "starting at 0" in log(tmp_path)
    assert "starting at 3" in log(tmp_path) or "starting at 4" in log(tmp_path)


def test_scancel_ends_a_job_with_a_checkpoint_and_without_a_requeue(cluster: Cluster, tmp_path: Path) -> None:
    record = place("count", counting(tmp_path, 1000), tasks_per_node=2)
    wait_until("it counts", lambda: reached(tmp_path, 2))
    subprocess.run(["scancel", record.job_id], check=True)
    end = wait_for_end(tmp_path, "count")
    assert (end.state, end.starts) == ("CANCELLED", 1)
    assert end.ledgers[0].end == "cancelled"
    assert "without a requeue" in log(tmp_path)


def test_three_starts_without_progress_end_the_job_with_the_reason(cluster: Cluster, tmp_path: Path) -> None:
    # Its progress is looked for where it never writes.
    record = place("count", counting(tmp_path, 1000, progress="nothing/*"))
    for start in (1, 2, 3):
        wait_until(f"start {start}", lambda start=start: log(tmp_path).count("starting at") == start)
        subprocess.run(["scancel", "--signal=USR2", record.job_id], check=True)
    end = wait_for_end(tmp_path, "count")
    assert (end.state, end.starts) == ("FAILED", 3)
    assert "no progress in 3 starts" in end.reason


def test_progress_at_each_start_allows_any_number_of_them(cluster: Cluster, tmp_path: Path) -> None:
    record = place("count", counting(tmp_path, 20, pause=0.2))
    for step in (2, 6, 10, 14):
        wait_until(f"step {step}", lambda step=step: reached(tmp_path, step))
        subprocess.run(["scancel", "--signal=USR2", record.job_id], check=True)
    end = wait_for_end(tmp_path, "count")
    assert (end.state, end.starts) == ("COMPLETED", 5)


def test_a_rank_that_loses_its_peers_has_the_job_requeued(cluster: Cluster, tmp_path: Path) -> None:
    place("loss", toy("lose_peers_once", tmp_path), nodes=2)
    end = wait_for_end(tmp_path, "loss")
    assert (end.state, end.starts) == ("COMPLETED", 2)
    assert "lost its peers" in log(tmp_path)


def test_an_error_of_one_rank_fails_the_job_although_its_peers_are_lost(cluster: Cluster, tmp_path: Path) -> None:
    place("bug", toy("one_rank_fails", tmp_path), nodes=2)
    end = wait_for_end(tmp_path, "bug")
    assert (end.state, end.starts) == ("FAILED", 1)
    assert "rank 1: ValueError: the bug" in end.reason


def test_a_node_that_dies_has_the_job_requeued_on_the_others(cluster: Cluster, tmp_path: Path) -> None:
    place("count", counting(tmp_path, 60), nodes=1, nodelist="node4")
    wait_until("it counts", lambda: reached(tmp_path, 3))
    cluster.crash("node4")
    try:
        wait_until("Slurm has noticed", lambda: standing(tmp_path, "count").state == "PENDING")
    finally:
        cluster.boot("node4")
    end = wait_for_end(tmp_path, "count")
    assert (end.state, end.starts, end.finished) == ("COMPLETED", 2, True)


def test_a_job_of_a_higher_partition_preempts_and_the_job_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    place("count", counting(tmp_path, 30), nodelist="node3")
    wait_until("it counts", lambda: reached(tmp_path, 3))
    place("greet", toy("greet", tmp_path), partition="urgent", nodelist="node3", exclusive=True)
    assert wait_for_end(tmp_path, "greet").state == "COMPLETED"
    end = wait_for_end(tmp_path, "count")
    assert (end.state, end.starts) == ("COMPLETED", 2)


def test_a_job_without_handlers_of_its_own_is_requeued_and_cancelled_as_well(cluster: Cluster, tmp_path: Path) -> None:
    record = place("plain", toy("plod", tmp_path))
    wait_until("it runs", lambda: "start" in log(tmp_path))
    subprocess.run(["scancel", "--signal=USR2", record.job_id], check=True)
    wait_until("it runs again", lambda: log(tmp_path).count("start") == 2)
    subprocess.run(["scancel", record.job_id], check=True)
    end = wait_for_end(tmp_path, "plain")
    assert (end.state, end.starts) == ("CANCELLED", 2)


def test_torchrun_on_each_node_stops_and_comes_back_like_srun(cluster: Cluster, tmp_path: Path) -> None:
    record = place("count", counting(tmp_path, 20, torchrun=2), nodes=2)
    wait_until("it counts", lambda: reached(tmp_path, 3))
    subprocess.run(["scancel", "--signal=USR2", record.job_id], check=True)
    end = wait_for_end(tmp_path, "count")
    assert (end.state, end.starts) == ("COMPLETED", 2)
