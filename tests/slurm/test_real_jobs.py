"""The product on the real Slurm of the fixture: the pipeline to a score, and runs that meet every kind of interruption.

The parts are slow because Slurm is, so all are started at once, in threads, by the first test; each test then waits
for its part and looks at what it left.
"""

import filecmp
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from slurm.status import Standing, standings
from tests.slurm.cluster import Cluster, place, toy, wait_until

pytestmark = pytest.mark.slow

SET = (
    "--synthetic.train", "16", "--synthetic.test", "4", "--patches.size", "64", "--patches.per-image", "8",
    "--shard-mb", "1",
)  # fmt: skip
NETWORK = ("--model.width", "4", "--model.depth", "2")
STEPS = 300
"""Long enough for the half minute that Slurm takes to notice a time limit."""
TRAINING = (
    "-f", "cells", "--steps", str(STEPS), "--epoch-steps", "100", "-b", "32", *NETWORK,
    "--checkpoint.every-steps", "10", "--tracking.wandb", "offline",
)  # fmt: skip
PROFILE = """
partition = "main"
memory_gb = 3
exclude = "node3,node4"
[environment]
OMP_NUM_THREADS = "1"
[jobs.train]
nodes = 2
tasks_per_node = 2
[jobs.infer]
nodes = 2
"""
FIRST_NODES = PROFILE.replace("tasks_per_node = 2", "tasks_per_node = 1")
LAST_NODES = """
partition = "main"
memory_gb = 3
nodes = 2
nodelist = "node3,node4"
[environment]
OMP_NUM_THREADS = "1"
"""
PIPELINE = {
    "make_shards": {
        "shard_mb": 1,
        "synthetic": {"train": 16, "test": 4},
        "patches": {"size": 64, "per_image": 8},
    },
    "train": {"preset": "fast", "steps": 120, "epoch_steps": 60, "model": {"width": 8, "depth": 2}},
    "infer": {"output": {"figures": 1}},
}


@dataclass
class Workplace:
    """A folder with `data/` and `runs/`, in which `segdist` is called."""

    folder: Path

    def segdist(self, *arguments: str) -> str:
        """Run a command as a person would; its output."""
        words = [sys.executable, "-m", "jobs.cli", *arguments]
        done = subprocess.run(words, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def standing(self, run: str, name: str) -> Standing:
        """How a link of a run stands."""
        return {item.record.name: item for item in standings(self.folder / "runs" / run / "slurm")}[name]

    def wait_for(self, run: str, name: str, what: str, condition: Callable[[Standing], bool]) -> Standing:
        """Wait until a link of a run stands as `condition` says; fails at once when it has failed."""
        seen: list[Standing] = []

        def holds() -> bool:
            now = self.standing(run, name)
            assert now.state != "FAILED", f"{run}: {name} failed: {now.reason}"
            if condition(now):
                seen.append(now)
            return bool(seen)

        wait_until(f"{run}: {name} {what}", holds)
        return seen[0]

    def finish(self, run: str, name: str) -> Standing:
        """Wait for the end of a link."""
        return self.wait_for(run, name, "finished", lambda now: now.finished and not now.alive)

    def step(self, run: str) -> int:
        """Step of the newest checkpoint, 0 without any."""
        folder = self.folder / "runs" / run / "checkpoints"
        return max((int(path.stem.split("-")[1]) for path in folder.glob("step-*.pt")), default=0)

    def job(self, run: str, name: str) -> str:
        """Id of the latest job of a link."""
        return self.standing(run, name).record.job_id

    def log(self, run: str) -> str:
        """All output of a run's jobs."""
        return "\n".join(path.read_text() for path in sorted((self.folder / "runs" / run / "slurm").glob("*_log.*")))


@dataclass
class Battered:
    """What was seen while a run met one interruption after another."""

    starts_after: dict[str, int] = field(default_factory=dict)
    """Kind of interruption → starts of the job once it ran again."""
    steps_at: dict[str, int] = field(default_factory=dict)
    """Kind of interruption → step of the newest checkpoint when it came."""
    end: str = ""
    cancelled: Standing | None = None


@pytest.fixture(scope="module")
def workplace(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """With the shard set `cells`, built in one process, and the profiles."""
    place = Workplace(tmp_path_factory.mktemp("workplace"))
    (place.folder / "profile.toml").write_text(PROFILE)
    (place.folder / "first-nodes.toml").write_text(FIRST_NODES)
    (place.folder / "last-nodes.toml").write_text(LAST_NODES)
    (place.folder / "pipeline.json").write_text(json.dumps(PIPELINE))
    (place.folder / ".venv").symlink_to(Path(sys.prefix))
    (place.folder / "runs" / "logs").mkdir(parents=True)
    place.segdist("make-shards", "-f", "cells", *SET, "--processes", "1")
    return place


@pytest.fixture(scope="module")
def parts(cluster: Cluster, workplace: Workplace) -> Iterator[dict[str, Future[Any]]]:
    """All long parts, at once."""
    with ThreadPoolExecutor() as pool:
        yield {
            function.__name__: pool.submit(function, workplace, cluster)
            for function in (whole_pipeline, calm_run, battered_run, local_pipeline)
        }


SUBMIT_WHOLE = (
    "submit", "pipeline", "--config", "pipeline.json", "--profile", "profile.toml", "--name", "whole",
    "--shard-tasks", "3",
)  # fmt: skip


def whole_pipeline(workplace: Workplace, cluster: Cluster) -> str:
    """make-shards (array) → manifest → train → infer → report, on 2 nodes."""
    said = workplace.segdist(*SUBMIT_WHOLE)
    workplace.finish("whole", "report")
    return said


def local_pipeline(workplace: Workplace, cluster: Cluster) -> str:
    """The same without Slurm."""
    return workplace.segdist(
        "submit", "pipeline", "--config", "pipeline.json", "--profile", "local", "--cluster", "local", "--name", "local"
    )


def calm_run(workplace: Workplace, cluster: Cluster) -> None:
    """A training that nothing happens to, with the shard set copied to the nodes first."""
    workplace.segdist(
        "submit", "train", "--profile", "first-nodes.toml", "--stage-to", str(workplace.folder / "node-disk"),
        "--", *TRAINING, "--name", "calm",
    )  # fmt: skip
    workplace.finish("calm", "train")


def battered_run(workplace: Workplace, cluster: Cluster) -> Battered:
    """The same training, on the two nodes that may be preempted and crashed."""
    seen = Battered()
    submit = ("submit", "train", "--profile", "last-nodes.toml", "--", *TRAINING, "--name", "battered")

    def next_start(kind: str) -> None:
        starts = len(seen.starts_after) + 1
        workplace.wait_for("battered", "train", f"runs after {kind}", lambda now: now.starts > starts)
        seen.starts_after[kind] = workplace.standing("battered", "train").starts

    def reach(kind: str, step: int) -> None:
        wait_until(f"step {step}", lambda: workplace.step("battered") >= step)
        seen.steps_at[kind] = workplace.step("battered")

    workplace.segdist(*submit)
    reach("preemption", 10)
    urgent = workplace.folder / "urgent"
    place("greet", toy("greet", urgent), partition="urgent", nodelist="node3", exclusive=True)
    next_start("preemption")

    reach("node crash", seen.steps_at["preemption"] + 20)
    cluster.crash("node4")
    wait_until("the job waits for the node", lambda: workplace.standing("battered", "train").state == "PENDING")
    cluster.boot("node4")
    next_start("node crash")

    reach("scancel", seen.steps_at["node crash"] + 20)
    subprocess.run(["scancel", workplace.job("battered", "train")], check=True)
    seen.cancelled = workplace.wait_for("battered", "train", "cancelled", lambda now: not now.alive)

    workplace.segdist(*submit)
    reach("time limit", seen.steps_at["scancel"] + 20)
    # The limit is moved to now; Slurm then does what it does at a limit: the profile's signal first.
    job = f"JobId={workplace.job('battered', 'train')}"
    subprocess.run(["scontrol", "update", job, "TimeLimit=2"], check=True)
    workplace.wait_for("battered", "train", "runs after time limit", lambda now: now.starts == 2)
    seen.starts_after["time limit"] = 2
    subprocess.run(["scontrol", "update", job, "TimeLimit=60"], check=True)
    workplace.finish("battered", "train")
    return seen


def last_checkpoint(workplace: Workplace, run: str) -> dict[str, Any]:
    """The state at the last step."""
    path = workplace.folder / "runs" / run / "checkpoints" / f"step-{STEPS:08}.pt"
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """A tree of dictionaries and lists as one dictionary."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)  # type: ignore[assignment]
    else:
        return {prefix: value}
    return {name: leaf for key, item in items for name, leaf in flat(item, f"{prefix}/{key}").items()}


def test_the_pipeline_reaches_a_score_on_two_nodes_of_two_ranks(
    parts: dict[str, Future[Any]], workplace: Workplace
) -> None:
    said = parts["whole_pipeline"].result()
    scores = json.loads((workplace.folder / "runs/whole/predictions/whole/scores.json").read_text())
    assert scores["mean_iou_over_images"] > 0.4
    assert "4 ranks on cpu" in workplace.log("whole")
    for words in ("submitted as job", "runs/whole/slurm", "segdist queue whole", "scancel"):
        assert words in said
    queue = workplace.segdist("queue", "whole")
    links = ["make-shards", "finish-shards", "train", "infer", "report"]
    assert [line.split()[1] for line in queue.splitlines()[1:]] == links
    assert queue.count("COMPLETED") == len(links)
    assert (workplace.folder / "runs/whole/report.html").stat().st_size > 10_000


def test_an_array_of_shard_builders_gives_the_bytes_of_one_process(
    parts: dict[str, Future[Any]], workplace: Workplace
) -> None:
    parts["whole_pipeline"].result()
    one, many = workplace.folder / "data/cells", workplace.folder / "data/whole"
    names = sorted(path.name for path in one.glob("*.*") if path.is_file())
    assert names == sorted(path.name for path in many.glob("*.*") if path.is_file())
    assert len([name for name in names if name.endswith(".tar")]) > 1
    assert filecmp.cmpfiles(one, many, names, shallow=False) == (names, [], [])


def test_a_pipeline_that_is_submitted_again_reuses_what_is_finished(
    parts: dict[str, Future[Any]], workplace: Workplace
) -> None:
    parts["whole_pipeline"].result()
    assert workplace.segdist(*SUBMIT_WHOLE).count("finished already") == 5


def test_the_pipeline_runs_without_slurm_and_says_so(parts: dict[str, Future[Any]], workplace: Workplace) -> None:
    said = parts["local_pipeline"].result()
    assert "no Slurm: the links run here, one after another" in said
    scores = json.loads((workplace.folder / "runs/local/predictions/local/scores.json").read_text())
    assert scores["mean_iou_over_images"] > 0.4
    assert "2 ranks on cpu" in workplace.log("local")


@pytest.mark.parametrize(("kind", "starts"), [("preemption", 2), ("node crash", 3), ("time limit", 2)])
def test_a_training_comes_back_after(kind: str, starts: int, parts: dict[str, Future[Any]]) -> None:
    seen: Battered = parts["battered_run"].result()
    assert seen.starts_after[kind] == starts


def test_a_training_told_to_stop_saves_its_state(parts: dict[str, Future[Any]], workplace: Workplace) -> None:
    parts["battered_run"].result()
    log = workplace.log("battered")
    assert log.count("with a checkpoint") >= 3  # time limit, preemption, scancel
    assert "lost its peers" in log  # node crash


def test_scancel_ends_a_training_without_a_requeue(parts: dict[str, Future[Any]]) -> None:
    seen: Battered = parts["battered_run"].result()
    assert seen.cancelled is not None
    assert (seen.cancelled.state, seen.cancelled.starts) == ("CANCELLED", 3)


def test_after_all_interruptions_the_result_has_the_bits_of_an_uninterrupted_run(
    parts: dict[str, Future[Any]], workplace: Workplace
) -> None:
    parts["battered_run"].result()
    parts["calm_run"].result()
    calm, battered = (flat(last_checkpoint(workplace, run)) for run in ("calm", "battered"))
    assert calm.keys() == battered.keys()
    timings = ("seconds", "metrics_position", "wandb", "tracking", "tracker")
    different = [
        name
        for name, value in calm.items()
        if not any(word in name for word in timings)
        and not (torch.equal(value, battered[name]) if isinstance(value, torch.Tensor) else value == battered[name])
    ]
    assert not different
    assert sum(isinstance(value, torch.Tensor) for value in calm.values()) > 20


def test_the_run_stays_one_run_in_wandb(parts: dict[str, Future[Any]], workplace: Workplace) -> None:
    parts["battered_run"].result()
    pieces = list((workplace.folder / "runs/battered/wandb").glob("offline-run-*"))
    assert len(pieces) >= 4
    assert len({piece.name.rsplit("-", 1)[1] for piece in pieces}) == 1


def test_staged_shards_are_read_from_the_node(parts: dict[str, Future[Any]], workplace: Workplace) -> None:
    parts["calm_run"].result()
    copies = list((workplace.folder / "node-disk").glob("cells-*"))
    assert len(copies) == 1  # the two nodes share this machine's disk
    assert "verified" in workplace.log("calm")
    config = json.loads((workplace.folder / "runs/calm/config.json").read_text())
    assert config["config"]["data"] == [str(copies[0])]


def test_an_inference_comes_back_after_a_node_crash_with_the_same_masks(
    parts: dict[str, Future[Any]], workplace: Workplace, cluster: Cluster
) -> None:
    parts["whole_pipeline"].result()
    parts["battered_run"].result()  # it needs node 4 as well
    arguments = ("-m", "runs/whole", "-f", "whole", "--split", "train", "--overlap", "0.875", "--output.figures", "0")
    workplace.segdist("submit", "infer", "--profile", "profile.toml", "--", *arguments, "--out", "calm-masks")
    workplace.finish("whole", "infer-calm-masks")
    workplace.segdist("submit", "infer", "--profile", "last-nodes.toml", "--", *arguments, "--out", "masks")
    records = workplace.folder / "masks" / "state" / "records"
    wait_until("two images are finished", lambda: len(list(records.glob("*.json"))) >= 2)
    cluster.crash("node4")
    wait_until("the job waits for the node", lambda: workplace.standing("whole", "infer-masks").state == "PENDING")
    assert len(list(records.glob("*.json"))) < 14  # not all of them
    cluster.boot("node4")
    assert workplace.finish("whole", "infer-masks").starts == 2
    calm, crashed = (workplace.folder / name / "masks" for name in ("calm-masks", "masks"))
    names = sorted(path.name for path in calm.iterdir())
    assert len(names) > 10
    assert filecmp.cmpfiles(calm, crashed, names, shallow=False) == (names, [], [])


def test_an_array_over_images_merges_to_the_same_masks_and_scores(
    parts: dict[str, Future[Any]], workplace: Workplace
) -> None:
    parts["whole_pipeline"].result()
    workplace.segdist(
        "submit", "infer", "--profile", "profile.toml", "--tasks", "2",
        "--", "-m", "runs/whole", "-f", "whole", "--out", "array", "--output.figures", "1",
    )  # fmt: skip
    workplace.finish("whole", "infer-array-merge")
    whole, array = workplace.folder / "runs/whole/predictions/whole", workplace.folder / "array"
    names = [f"masks/{path.name}" for path in (whole / "masks").iterdir()]
    assert filecmp.cmpfiles(whole, array, names, shallow=False) == (names, [], [])
    read = [json.loads((folder / "scores.json").read_text())["mean_iou_over_images"] for folder in (whole, array)]
    assert read[0] == read[1]


def test_the_sbatch_templates_work_without_submitit(cluster: Cluster, workplace: Workplace) -> None:
    templates = Path(__file__).parents[2] / "slurm" / "templates"

    def sbatch(*arguments: str) -> str:
        words = ["sbatch", "--parsable", "--mem=3G", "--exclude=node3,node4", *arguments]
        return subprocess.run(words, cwd=workplace.folder, capture_output=True, text=True, check=True).stdout.strip()

    make, train, infer = (str(templates / f"{name}.sbatch") for name in ("make_shards", "train", "infer"))
    shards = sbatch("--array=0-1", make, "-f", "plain", *SET)
    finish = sbatch(f"--dependency=afterok:{shards}", make, "-f", "plain", *SET, "--finish")
    training = sbatch(
        f"--dependency=afterok:{finish}", "--ntasks-per-node=2", train, "-f", "plain", "--steps", "120",
        "--epoch-steps", "60", *NETWORK, "--checkpoint.every-steps", "5", "--tracking.wandb", "off",
    )  # fmt: skip
    sbatch(f"--dependency=afterok:{training}", "--ntasks-per-node=2", infer, "-m", "plain", "-f", "plain")
    log = workplace.folder / "runs" / "logs" / f"segdist-train_{training}.log"
    wait_until("it trains", lambda: workplace.step("plain") >= 5)
    subprocess.run(["scancel", "--signal=USR2", training], check=True)
    scores = workplace.folder / "runs/plain/predictions/plain/scores.json"
    wait_until("there are scores", scores.exists)
    assert "going on after step" in log.read_text()
