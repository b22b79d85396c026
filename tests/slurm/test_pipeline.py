"""Job chains on real Slurm and without Slurm, with jobs that only greet or fail."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from segdist.core.errors import UserError
from slurm.pipeline import Link, Placed, submit_chain
from slurm.submit import Order, job_folder, sbatch_script
from slurm.task import Task
from tests.support.cluster import SUBMITTING, Cluster, log, profile, standing, toy, wait_for_end, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def link(folder: Path, name: str, *tasks: Task) -> Link:
    """One link, whose product is the first task's output."""
    return Link(Order(name, tasks, profile(), folder / "slurm"), f"{folder}/0.txt")


def greeting(folder: Path, name: str, *words: str) -> Link:
    """A link that succeeds."""
    return link(folder, name, toy("greet", folder, *words))


def run_chain(*links: Link, cluster: str = "slurm") -> list[Placed]:
    """Submit a chain without printing."""
    with SUBMITTING:
        return submit_chain(links, cluster, lambda line: None)  # type: ignore[arg-type]


def whats(placed: list[Placed]) -> list[str]:
    """The outcome for each link."""
    return [item.what for item in placed]


def test_links_run_in_order_and_finished_ones_are_not_repeated(cluster: Cluster, tmp_path: Path) -> None:
    array = link(tmp_path, "array", *(toy("greet", tmp_path, str(number)) for number in range(3)))
    links = array, greeting(tmp_path, "second"), greeting(tmp_path, "third")
    (tmp_path / "hold").touch()
    first = run_chain(*links)
    assert whats(first) == ["submitted"] * 3
    assert whats(run_chain(*links)) == ["queued already"] * 3
    (tmp_path / "hold").unlink()
    assert wait_for_end(tmp_path, "third").finished
    assert [item.record.job_id for item in run_chain(*links)] == [item.record.job_id for item in first]
    assert whats(run_chain(*links)) == ["finished already"] * 3
    # Different arguments make a new second link, and therefore a new third one.
    again = run_chain(links[0], greeting(tmp_path, "second", "hello"), links[2])
    assert whats(again) == ["finished already", "submitted", "submitted"]
    assert wait_for_end(tmp_path, "third").finished


def test_a_failed_first_link_cancels_the_others_and_they_say_why(cluster: Cluster, tmp_path: Path) -> None:
    run_chain(link(tmp_path, "first", toy("fail", tmp_path)), greeting(tmp_path, "second"), greeting(tmp_path, "third"))
    looks = []

    def stuck() -> str:
        looks.append(standing(tmp_path, "second").reason)
        return "it waits for ever" if looks[-5:] == ["DependencyNeverSatisfied"] * 5 else ""

    wait_until("the last is cancelled", lambda: standing(tmp_path, "third").state == "CANCELLED", stuck)
    first, second, third = (standing(tmp_path, name) for name in ("first", "second", "third"))
    assert (first.state, second.state) == ("FAILED", "CANCELLED")
    assert "the masks are missing" in first.reason
    assert "first (job" in second.reason
    assert "the masks are missing" in second.reason
    assert "second was also canceled" in third.reason
    # Once fixed and submitted again, all links run.
    assert whats(run_chain(*(greeting(tmp_path, name) for name in ("first", "second", "third")))) == ["submitted"] * 3
    assert wait_for_end(tmp_path, "third").finished


def test_concurrent_chains_do_not_interfere(cluster: Cluster, tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    threads = [
        threading.Thread(target=run_chain, args=[greeting(folder, "first"), greeting(folder, "second", folder.name)])
        for folder in folders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for folder in folders:
        assert wait_for_end(folder, "second").finished
        assert (folder / "0.txt").read_text().startswith(folder.name)


def test_a_job_gets_the_requested_gpus(cluster: Cluster, tmp_path: Path) -> None:
    order = Order("gpus", (toy("greet", tmp_path),), profile(gpus_per_node=3, tasks_per_node=None), tmp_path / "slurm")
    run_chain(Link(order, "unused"))
    assert wait_for_end(tmp_path, "gpus").finished
    assert sorted(path.name for path in tmp_path.glob("*.txt")) == ["0.txt", "1.txt", "2.txt"]  # one rank per GPU
    assert (tmp_path / "0.txt").read_text() == "0,1,2"


def test_the_dry_run_shows_the_submitted_script(cluster: Cluster, tmp_path: Path) -> None:
    (placed,) = run_chain(greeting(tmp_path, "greet"))
    number = placed.record.job_id
    written = job_folder(placed.link.order.folder, number) / f"{number}_submission.sh"
    assert sbatch_script(placed.link.order) == written.read_text()
    assert wait_for_end(tmp_path, "greet").finished


def test_changed_code_since_submission_causes_a_warning(cluster: Cluster, tmp_path: Path) -> None:
    task = toy("greet", tmp_path)
    older = Task(task.arguments, task.folder, type(task.code)("0123456789ab", "of yesterday"), task.entry)
    run_chain(link(tmp_path, "old", older), greeting(tmp_path, "new"))
    assert wait_for_end(tmp_path, "new").finished
    assert log(tmp_path).count("the checkout has changed since this job was submitted") == 1
    assert standing(tmp_path, "new").record.code == str(task.code)


def test_a_conflicting_link_is_named_with_the_fix(cluster: Cluster, tmp_path: Path) -> None:
    waiting = Link(Order("wait", (toy("plod", tmp_path),), profile(), tmp_path / "slurm"), f"{tmp_path}/never")
    (placed,) = run_chain(waiting)
    with pytest.raises(UserError, match=f"scancel {placed.record.job_id}"):
        run_chain(link(tmp_path, "wait", toy("plod", tmp_path, "otherwise")))
    subprocess.run(["scancel", placed.record.job_id], check=True)


@pytest.mark.parametrize("kind", ["local"])
def test_without_slurm_links_run_locally_in_order(kind: str, tmp_path: Path) -> None:
    two_ranks = Link(
        Order("ranks", (toy("greet", tmp_path),), profile(tasks_per_node=2), tmp_path / "slurm"), f"{tmp_path}/1.txt"
    )
    links = two_ranks, greeting(tmp_path, "second")
    assert whats(run_chain(*links, cluster=kind)) == ["submitted", "submitted"]
    assert (tmp_path / "1.txt").exists()
    assert whats(run_chain(*links, cluster=kind)) == ["finished already"] * 2
    changed = replace(links[1], order=replace(links[1].order, settings="others"))
    assert whats(run_chain(links[0], changed, cluster=kind)) == ["finished already", "submitted"]


def test_without_slurm_a_failed_link_stops_the_chain_with_its_reason(tmp_path: Path) -> None:
    failing = link(tmp_path, "first", toy("fail", tmp_path))
    with pytest.raises(UserError, match="first failed: the masks are missing"):
        run_chain(failing, greeting(tmp_path, "second"), cluster="local")
    assert not (tmp_path / "0.txt").exists()


@pytest.mark.parametrize("times", [1, 2])
def test_without_slurm_an_interrupted_link_stops_cleanly_or_at_once(tmp_path: Path, times: int) -> None:
    script = (
        # A test run started in the background ignores Ctrl-C, which this process would inherit.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "import sys; from pathlib import Path; from tests.support.cluster import toy; "
        "from tests.slurm.test_pipeline import link, run_chain; folder = Path(sys.argv[1]); "
        f"run_chain(link(folder, 'count', toy('count', folder, {2 if times == 1 else 60})), cluster='local')"
    )
    words = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(
        words, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as chain:
        wait_until("it counts", (tmp_path / "steps" / "2").exists)
        for _ in range(times):
            os.killpg(chain.pid, signal.SIGINT)  # the whole group, as a terminal does
            time.sleep(1)
        _, said = chain.communicate(timeout=30)
    assert said.count("Traceback") == 1  # from run_chain only; submitit's is hidden

    def counts_on() -> str:
        return "it counts on" if (tmp_path / "steps" / "60").exists() else ""

    gone = str(tmp_path)
    try:
        wait_until("it is gone", lambda: not any(gone in line for line in running_commands()), counts_on)
    finally:
        (tmp_path / "enough").touch()
    assert (tmp_path / "saved").exists() == (times == 1)


def running_commands() -> list[str]:
    """The command line of each process."""
    listed = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def test_debug_runs_the_job_in_this_process(tmp_path: Path) -> None:
    assert whats(run_chain(greeting(tmp_path, "here"), cluster="debug")) == ["submitted"]
    assert (tmp_path / "0.txt").exists()


def test_several_nodes_or_an_array_are_refused_without_slurm(tmp_path: Path) -> None:
    task = toy("greet", tmp_path)
    for tasks, nodes, words in (((task,), 2, "2 nodes"), ((task, task), 1, "a job array needs --cluster slurm")):
        with pytest.raises(UserError, match=words):
            run_chain(Link(Order("x", tasks, profile(nodes=nodes), tmp_path / "slurm"), "unused"), cluster="local")
