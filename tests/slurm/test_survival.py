"""What happens to a job at each kind of interruption, with jobs that only count; on the real Slurm of the fixture.

The scenarios wait for Slurm most of the time, so all of them run at once; each is one test. The jobs count until they
are allowed to end, and a scenario waits for what it has caused before it goes on, so that a machine's speed decides
nothing.
"""

import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from slurm.standing import Standing, left_in_queue
from slurm.task import Task
from tests.support.cluster import Cluster, ended, log, place, standing, toy, wait_for, wait_for_end, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

Scenario = Callable[[Cluster, Path], None]
SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    """Run `function` beside the others, as the test `test_survival[name of the function]`."""
    SCENARIOS[function.__name__] = function
    return function


@pytest.fixture(scope="module")
def running(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[None]]]:
    """All scenarios, each in a thread and a folder of its own."""
    with ThreadPoolExecutor(len(SCENARIOS)) as pool:
        yield {
            name: pool.submit(function, cluster, tmp_path_factory.mktemp(f"scenario{number}"))
            for number, (name, function) in enumerate(SCENARIOS.items())
        }


def counting(folder: Path, progress: str = "steps/*", torchrun: int = 0) -> Task:
    """The job that counts; its steps are its progress."""
    return toy("count", folder, progress=(str(folder / progress),), torchrun=torchrun)


def steps(folder: Path) -> int:
    """How far the job has counted."""
    return max((int(path.name) for path in (folder / "steps").glob("*")), default=0)


def wait_for_steps(folder: Path, more: int) -> None:
    """Wait until the job has counted on by so many."""
    goal = steps(folder) + more
    wait_until(f"it counts to {goal}", lambda: steps(folder) >= goal, ended(lambda: standing(folder, "count")))


def free_nodes(names: str) -> int:
    """How many of the nodes are idle."""
    command = ["sinfo", "--noheader", "--Node", f"--nodes={names}", "--format=%N %t"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return len({line.split()[0] for line in lines if line.split()[1] == "idle"})


def wait_for_start(folder: Path, number: int) -> None:
    """Wait until the job has been started so often."""
    wait_for(f"start {number}", lambda now: now.starts >= number, lambda: standing(folder, "count"))


def let_it_end(folder: Path) -> Standing:
    """The job may end now; how it stands then."""
    (folder / "enough").touch()
    return wait_for_end(folder, "count", standing(folder, "count").starts)


@scenario
def a_job_that_is_told_to_stop_is_requeued_by_submitit_and_continues(cluster: Cluster, folder: Path) -> None:
    record = place("count", counting(folder), nodes=2, tasks_per_node=2)
    wait_for_steps(folder, 3)
    subprocess.run(["scancel", "--signal=USR2", record.job_id], check=True)
    wait_for_start(folder, 2)
    wait_for_steps(folder, 1)
    end = let_it_end(folder)
    assert (end.state, end.starts, end.finished) == ("COMPLETED", 2, True)
    assert "Requeued job" in log(folder)
    first, second = re.findall(r"counting from (\d+)", (folder / "slurm" / f"{record.job_id}_0_log.out").read_text())
    assert int(first) == 0
    assert int(second) >= 3


@scenario
def a_job_that_may_take_fewer_nodes_comes_back_without_the_one_that_died(cluster: Cluster, folder: Path) -> None:
    # Slurm starts it with the nodes that are free by then.
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
    said = (folder / "slurm" / f"{record.job_id}_0_log.out").read_text()
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
def three_starts_without_progress_end_the_job_with_the_reason(cluster: Cluster, folder: Path) -> None:
    # Its progress is looked for where it never writes.
    record = place("count", counting(folder, progress="nothing/*"))
    for start in (1, 2, 3):
        wait_for_start(folder, start)
        wait_for_steps(folder, 1)
        subprocess.run(["scancel", "--signal=USR2", record.job_id], check=True)
    end = wait_for_end(folder, "count", starts=3)
    assert (end.state, end.starts) == ("FAILED", 3)
    assert "no progress in 3 starts" in end.reason


@scenario
def progress_at_each_start_allows_any_number_of_them(cluster: Cluster, folder: Path) -> None:
    record = place("count", counting(folder))
    for start in (1, 2, 3, 4):
        wait_for_start(folder, start)
        wait_for_steps(folder, 2)
        subprocess.run(["scancel", "--signal=USR2", record.job_id], check=True)
    wait_for_start(folder, 5)
    end = let_it_end(folder)
    assert (end.state, end.starts) == ("COMPLETED", 5)


@scenario
def a_rank_that_loses_its_peers_has_the_job_requeued(cluster: Cluster, folder: Path) -> None:
    place("loss", toy("lose_peers_once", folder), nodes=2, tasks_per_node=3)
    end = wait_for_end(folder, "loss", starts=2)
    assert (end.state, end.starts) == ("COMPLETED", 2)
    assert log(folder).count("lost its peers") == 6
    assert 1 <= log(folder).count("requests a requeue") <= 2  # of six ranks, at most one on each node


@scenario
def the_exit_code_for_lost_peers_has_the_job_requeued_as_well(cluster: Cluster, folder: Path) -> None:
    place("loss", toy("lose_peers_by_code_once", folder), nodes=2)
    end = wait_for_end(folder, "loss", starts=2)
    assert (end.state, end.starts) == ("COMPLETED", 2)


@scenario
def an_error_of_one_rank_fails_the_job_although_its_peers_are_lost(cluster: Cluster, folder: Path) -> None:
    place("bug", toy("one_rank_fails", folder), nodes=2)
    end = wait_for_end(folder, "bug")
    assert (end.state, end.starts) == ("FAILED", 1)
    assert "rank 1: ValueError: the bug" in end.reason


@scenario
def a_node_that_dies_has_the_job_requeued_on_the_others(cluster: Cluster, folder: Path) -> None:
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
def a_job_of_a_higher_partition_preempts_and_the_job_comes_back(cluster: Cluster, folder: Path) -> None:
    place("count", counting(folder), nodelist="node3")
    wait_for_steps(folder, 3)
    place("greet", toy("greet", folder), partition="urgent", nodelist="node3", exclusive=True)
    assert wait_for_end(folder, "greet").state == "COMPLETED"
    wait_for_start(folder, 2)
    end = let_it_end(folder)
    assert (end.state, end.starts) == ("COMPLETED", 2)


@scenario
def a_requeue_by_somebody_else_goes_on_from_the_checkpoint(cluster: Cluster, folder: Path) -> None:
    record = place("count", counting(folder), tasks_per_node=2)
    wait_for_steps(folder, 3)
    subprocess.run(["scontrol", "requeue", record.job_id], check=True)
    wait_for_start(folder, 2)
    wait_for_steps(folder, 1)
    end = let_it_end(folder)
    assert (end.state, end.starts) == ("COMPLETED", 2)
    starts = re.findall(r"counting from (\d+)", (folder / "slurm" / f"{record.job_id}_0_log.out").read_text())
    assert int(starts[1]) >= 3


@scenario
def one_task_of_an_array_comes_back_without_the_others(cluster: Cluster, folder: Path) -> None:
    record = place("count", counting(folder), counting(folder))
    over = ended(lambda: standing(folder, "count"))
    wait_until("both tasks count", lambda: log(folder).count("counting from") == 2, over)
    subprocess.run(["scancel", "--signal=USR2", f"{record.job_id}_1"], check=True)
    wait_for_start(folder, 2)
    end = let_it_end(folder)
    assert end.state == "2 COMPLETED"
    assert [len(ledger.starts) for ledger in end.ledgers] == [1, 2]


@scenario
def a_job_without_handlers_of_its_own_is_requeued_and_cancelled_as_well(cluster: Cluster, folder: Path) -> None:
    record = place("plain", toy("plod", folder))
    over = ended(lambda: standing(folder, "plain"))
    wait_until("it runs", lambda: "plodding" in log(folder), over)
    subprocess.run(["scancel", "--signal=USR2", record.job_id], check=True)
    wait_until("it runs again", lambda: log(folder).count("plodding") == 2, over)
    subprocess.run(["scancel", record.job_id], check=True)
    end = wait_for_end(folder, "plain", starts=2)
    assert (end.state, end.starts) == ("CANCELLED", 2)


@scenario
def torchrun_on_each_node_stops_and_comes_back_like_srun(cluster: Cluster, folder: Path) -> None:
    record = place("count", counting(folder, torchrun=2), nodes=2)
    wait_for_steps(folder, 3)
    subprocess.run(["scancel", "--signal=USR2", record.job_id], check=True)
    wait_for_start(folder, 2)
    wait_for_steps(folder, 1)
    end = let_it_end(folder)
    assert (end.state, end.starts) == ("COMPLETED", 2)


@scenario
def a_suspended_job_is_called_one_and_says_how_it_continues(cluster: Cluster, folder: Path) -> None:
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
def a_time_limit_that_comes_without_a_signal_is_called_one(cluster: Cluster, folder: Path) -> None:
    place("count", counting(folder), time_minutes=1, signal_seconds=0)
    end = wait_for_end(folder, "count")
    assert end.state == "TIMEOUT"
    assert "it reached its time limit" in end.reason


@scenario
def a_job_whose_run_folder_is_gone_is_still_found_in_the_queue(cluster: Cluster, folder: Path) -> None:
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
