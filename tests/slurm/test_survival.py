"""Every kind of interruption on real Slurm, with jobs that only count.

The scenarios mostly wait for Slurm, so all run concurrently; each is one test. Jobs count until allowed to end, and a
scenario waits for each effect before continuing, so results don't depend on the machine's speed.
"""

import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from slurm.standing import Standing, left_in_queue
from slurm.submit import job_folder
from slurm.task import Task
from tests.support.cluster import (
    Cluster,
    ended,
    log,
    log_of_rank_0,
    place,
    standing,
    toy,
    wait_for,
    wait_for_end,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

Scenario = Callable[[Cluster, Path], None]
SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    """Run `function` concurrently with the others, as the test `test_survival[name of the function]`."""
    SCENARIOS[function.__name__] = function
    return function


@pytest.fixture(scope="module")
def running(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[None]]]:
    """All scenarios, each in its own thread and folder."""
    with ThreadPoolExecutor(len(SCENARIOS)) as pool:
        yield {
            name: pool.submit(function, cluster, tmp_path_factory.mktemp(f"scenario{number}"))
            for number, (name, function) in enumerate(SCENARIOS.items())
        }


def counting(folder: Path, progress: str = "steps/*", torchrun: int = 0) -> Task:
    """The counting job, whose progress is its steps."""
    return toy("count", folder, progress=(str(folder / progress),), torchrun=torchrun)


def steps(folder: Path) -> int:
    """The job's current count."""
    return max((int(path.name) for path in (folder / "steps").glob("*")), default=0)


def wait_for_steps(folder: Path, more: int) -> None:
    """Wait until the job has counted `more` steps."""
    goal = steps(folder) + more
    wait_until(f"it counts to {goal}", lambda: steps(folder) >= goal, ended(lambda: standing(folder, "count")))


def free_nodes(names: str) -> int:
    """Number of idle nodes among `names`."""
    command = ["sinfo", "--noheader", "--Node", f"--nodes={names}", "--format=%N %t"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return len({line.split()[0] for line in lines if line.split()[1] == "idle"})


def wait_for_start(folder: Path, number: int) -> None:
    """Wait until the job has been started `number` times."""
    wait_for(f"start {number}", lambda now: now.starts >= number, lambda: standing(folder, "count"))


def let_it_end(folder: Path) -> Standing:
    """Let the job end; return its final status."""
    (folder / "enough").touch()
    return wait_for_end(folder, "count", standing(folder, "count").starts)


@scenario
def a_job_told_to_stop_is_requeued_by_submitit_and_resumes(cluster: Cluster, folder: Path) -> None:
    record = place("count", counting(folder), nodes=2, tasks_per_node=2)
    wait_for_steps(folder, 3)
    subprocess.run(["scancel", "--signal=USR2", record.job_id], check=True)
    wait_for_start(folder, 2)
    wait_for_steps(folder, 1)
    end = let_it_end(folder)
    assert (end.state, end.starts, end.finished) == ("COMPLETED", 2, True)
    assert "Requeued job" in log(folder)
    logs = job_folder(folder / "slurm", record.job_id)
    ranks = [path.name.split("_")[:2] for path in logs.glob("*_log.out")]
    assert {rank for _, rank in ranks} == {"0", "1", "2", "3"}
    assert len({node for node, rank in ranks if rank in "02"}) >= 2  # two ranks per node: 0 and 2 never share one
    assert (logs / "rank0.out").resolve().name == f"{end.ledgers[0].starts[-1].host}_0_log.out"
    assert not list((folder / "slurm").glob("*_?_log.*"))
    first, second = re.findall(r"counting from (\d+)", log_of_rank_0(folder, record))
    assert int(first) == 0
    assert int(second) >= 3


@scenario
def a_job_that_accepts_fewer_nodes_resumes_without_the_dead_one(cluster: Cluster, folder: Path) -> None:
    # Slurm starts it with the nodes free at that time.
    wait_until("two nodes are free", lambda: free_nodes("node[5-6]") == 2)
    record = place("count", counting(folder), nodes=2, nodes_min=1, exclude="node[1-4]")
    wait_for_steps(folder, 2)
    cluster.crash("node6")
    try:
        wait_for_start(folder, 2)
        wait_for_steps(folder, 1)
    finally:
        cluster.boot("node6")
    end = let_it_end(folder)
    assert (end.state, end.starts) == ("COMPLETED", 2)
    said = log_of_rank_0(folder, record)
    assert re.findall(r"on (\d) nodes", said) == ["2", "1"]


@scenario
def scancel_ends_a_job_with_a_checkpoint_and_without_a_requeue(cluster: Cluster, folder: Path) -> None:
    record = place("count", counting(folder), tasks_per_node=2)
    wait_for_steps(folder, 2)
    subprocess.run(["scancel", record.job_id], check=True)
    end = wait_for_end(folder, "count")
    assert (end.state, end.starts) == ("CANCELLED", 1)
    assert end.ledgers[0].end == "cancelled"
    assert "without a requeue" in log(folder)


@scenario
def three_starts_without_progress_end_the_job_with_a_reason(cluster: Cluster, folder: Path) -> None:
    # Progress is expected in files that the job never writes.
    record = place("count", counting(folder, progress="nothing/*"))
    for start in (1, 2, 3):
        wait_for_start(folder, start)
        wait_for_steps(folder, 1)
        subprocess.run(["scancel", "--signal=USR2", record.job_id], check=True)
    end = wait_for_end(folder, "count", starts=3)
    assert (end.state, end.starts) == ("FAILED", 3)
    assert "no progress in 3 starts" in end.reason


@scenario
def progress_at_each_start_allows_any_number_of_starts(cluster: Cluster, folder: Path) -> None:
    record = place("count", counting(folder))
    for start in (1, 2, 3, 4):
        wait_for_start(folder, start)
        wait_for_steps(folder, 2)
        subprocess.run(["scancel", "--signal=USR2", record.job_id], check=True)
    wait_for_start(folder, 5)
    end = let_it_end(folder)
    assert (end.state, end.starts) == ("COMPLETED", 5)


@scenario
def a_rank_that_loses_its_peers_gets_the_job_requeued(cluster: Cluster, folder: Path) -> None:
    place("loss", toy("lose_peers_once", folder), nodes=2, tasks_per_node=3)
    end = wait_for_end(folder, "loss", starts=2)
    assert (end.state, end.starts) == ("COMPLETED", 2)
    assert log(folder).count("lost its peers") == 6
    assert 1 <= log(folder).count("requests a requeue") <= 2  # of six ranks, at most one per node


@scenario
def the_exit_code_for_lost_peers_also_gets_the_job_requeued(cluster: Cluster, folder: Path) -> None:
    place("loss", toy("lose_peers_by_code_once", folder), nodes=2)
    end = wait_for_end(folder, "loss", starts=2)
    assert (end.state, end.starts) == ("COMPLETED", 2)


@scenario
def an_error_on_one_rank_fails_the_job_even_if_other_ranks_lose_their_peer(cluster: Cluster, folder: Path) -> None:
    place("bug", toy("one_rank_fails", folder), nodes=2)
    end = wait_for_end(folder, "bug")
    assert (end.state, end.starts) == ("FAILED", 1)
    assert "rank 1: ValueError: the bug" in end.reason


@scenario
def a_job_on_a_dead_node_is_requeued(cluster: Cluster, folder: Path) -> None:
    place("count", counting(folder), nodes=1, nodelist="node4")
    wait_for_steps(folder, 3)
    cluster.crash("node4")
    try:
        wait_for("Slurm has noticed", lambda now: now.state == "PENDING", lambda: standing(folder, "count"))
    finally:
        cluster.boot("node4")
    wait_for_start(folder, 2)
    end = let_it_end(folder)
    assert (end.state, end.starts, end.finished) == ("COMPLETED", 2, True)


@scenario
def a_job_preempted_by_a_higher_partition_resumes(cluster: Cluster, folder: Path) -> None:
    place("count", counting(folder), nodelist="node3")
    wait_for_steps(folder, 3)
    place("greet", toy("greet", folder), partition="urgent", nodelist="node3", exclusive=True)
    assert wait_for_end(folder, "greet").state == "COMPLETED"
    wait_for_start(folder, 2)
    end = let_it_end(folder)
    assert (end.state, end.starts) == ("COMPLETED", 2)


@scenario
def a_job_requeued_by_someone_else_resumes_from_its_checkpoint(cluster: Cluster, folder: Path) -> None:
    record = place("count", counting(folder), tasks_per_node=2)
    wait_for_steps(folder, 3)
    subprocess.run(["scontrol", "requeue", record.job_id], check=True)
    wait_for_start(folder, 2)
    wait_for_steps(folder, 1)
    end = let_it_end(folder)
    assert (end.state, end.starts) == ("COMPLETED", 2)
    starts = re.findall(r"counting from (\d+)", log_of_rank_0(folder, record))
    assert int(starts[1]) >= 3


@scenario
def one_array_task_is_requeued_without_the_others(cluster: Cluster, folder: Path) -> None:
    record = place("count", counting(folder), counting(folder))
    over = ended(lambda: standing(folder, "count"))
    wait_until("both tasks count", lambda: log(folder).count("counting from") == 2, over)
    subprocess.run(["scancel", "--signal=USR2", f"{record.job_id}_1"], check=True)
    wait_for_start(folder, 2)
    end = let_it_end(folder)
    assert end.state == "2 COMPLETED"
    assert [len(ledger.starts) for ledger in end.ledgers] == [1, 2]
    logs = [job_folder(folder / "slurm", task) for task in record.task_ids]
    said = ["".join(path.read_text() for path in here.glob("*_0_log.out")) for here in logs]
    assert [text.count("counting from") for text in said] == [1, 2]


@scenario
def a_job_without_signal_handlers_is_also_requeued_and_canceled(cluster: Cluster, folder: Path) -> None:
    record = place("plain", toy("plod", folder))
    over = ended(lambda: standing(folder, "plain"))
    wait_until("it runs", lambda: "plodding" in log(folder), over)
    subprocess.run(["scancel", "--signal=USR2", record.job_id], check=True)
    wait_until("it runs again", lambda: log(folder).count("plodding") == 2, over)
    subprocess.run(["scancel", record.job_id], check=True)
    end = wait_for_end(folder, "plain", starts=2)
    assert (end.state, end.starts) == ("CANCELLED", 2)


@scenario
def torchrun_on_each_node_stops_and_resumes_like_srun(cluster: Cluster, folder: Path) -> None:
    record = place("count", counting(folder, torchrun=2), nodes=2)
    wait_for_steps(folder, 3)
    subprocess.run(["scancel", "--signal=USR2", record.job_id], check=True)
    wait_for_start(folder, 2)
    wait_for_steps(folder, 1)
    end = let_it_end(folder)
    assert (end.state, end.starts) == ("COMPLETED", 2)


@scenario
def a_suspended_job_is_reported_with_how_to_resume_it(cluster: Cluster, folder: Path) -> None:
    record = place("count", counting(folder))
    wait_for_steps(folder, 2)
    subprocess.run(["scontrol", "suspend", record.job_id], check=True)
    held = wait_for("it is suspended", lambda now: now.state == "SUSPENDED", lambda: standing(folder, "count"))
    assert held.alive
    assert f"`scontrol resume {record.job_id}` continues it" in held.reason
    subprocess.run(["scontrol", "resume", record.job_id], check=True)
    wait_for_steps(folder, 1)
    assert let_it_end(folder).state == "COMPLETED"


@scenario
def a_time_limit_without_a_signal_is_reported_as_one(cluster: Cluster, folder: Path) -> None:
    place("count", counting(folder), time_minutes=1, signal_seconds=0)
    end = wait_for_end(folder, "count")
    assert end.state == "TIMEOUT"
    assert "it reached its time limit" in end.reason


@scenario
def a_job_with_a_missing_run_folder_is_still_found_in_the_queue(cluster: Cluster, folder: Path) -> None:
    record = place("count", counting(folder))
    wait_for_steps(folder, 2)
    (folder / "slurm").rename(folder / "moved")
    try:
        assert left_in_queue(folder / "slurm") == [f"{record.job_id} RUNNING"]
    finally:
        (folder / "moved").rename(folder / "slurm")
    assert let_it_end(folder).state == "COMPLETED"


@pytest.mark.parametrize("name", SCENARIOS)
def test_survival(name: str, running: dict[str, Future[None]]) -> None:
    running[name].result()
