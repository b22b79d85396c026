"""Real jobs on real Slurm: the pipeline up to a score, and runs with every kind of interruption.

Slurm is slow, so the first test starts all parts at once, in threads; each test then waits for its part and checks the
results. Jobs to be interrupted run with a brake (`tests.support.braked`), so that they neither finish too early on a
fast machine nor time out on a slow one.
"""

import filecmp
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from slurm.requeue import state_of
from slurm.standing import ALIVE, Standing, standings
from tests.support.braked import BRAKE, Brake
from tests.support.cluster import Cluster, ended, place, toy, wait_for, wait_until
from tests.support.states import digest, last_step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

CHECKOUT = Path(__file__).parents[2]

SET = (
    "--synthetic.train", "16", "--synthetic.test", "4", "--patches.size", "64", "--patches.per-image", "8",
    "--shard-mb", "1",
)  # fmt: skip
BRAKED = "tests.support.braked:BrakedUNet"
NETWORK = ("--model.factory", BRAKED, "--model.kwargs", json.dumps({"width": 4, "depth": 2}))
STEPS = 120
TRAINING = (
    "-f", "cells", "--steps", str(STEPS), "--epoch-steps", "40", "-b", "32", *NETWORK,
    "--checkpoint.every-steps", "5", "--tracking.wandb", "offline",
)  # fmt: skip
PROFILE = """
partition = "main"
memory_gb = 3
exclude = "node[3-6]"
[environment]
OMP_NUM_THREADS = "1"
[jobs.train]
nodes = 2
tasks_per_node = 2
[jobs.infer]
nodes = 2
"""
TORCHRUN = PROFILE.replace("tasks_per_node = 2", 'tasks_per_node = 2\nlauncher = "torchrun"')
CALM = PROFILE.replace("tasks_per_node = 2", "tasks_per_node = 1")
BATTERED = """
partition = "main"
memory_gb = 3
nodes = 2
nodelist = "NODES"
[environment]
OMP_NUM_THREADS = "1"
SEGDIST_TEST_BRAKE = "battered-brake"
"""
"""Runs on its own nodes, which may be preempted or crash."""
SHRINKING = """
partition = "main"
memory_gb = 3
nodes = 2
nodes_min = 1
exclude = "node[1-4]"
[environment]
OMP_NUM_THREADS = "1"
SEGDIST_TEST_BRAKE = "shrunk-brake"
"""
"""Runs on two nodes, or on the remaining one."""
GENTLY, HARD = 0.1, 1.0
"""Brake in seconds per step: before an interruption, and while it takes effect."""
PIPELINE = {
    "make_shards": {
        "shard_mb": 1,
        "synthetic": {"train": 16, "test": 4},
        "patches": {"size": 64, "per_image": 8},
    },
    "train": {
        "preset": "fast",
        "steps": 120,
        "epoch_steps": 60,
        "model": {"factory": BRAKED, "kwargs": {"width": 8, "depth": 2}},
    },
    "infer": {"output": {"figures": 1}},
}


@dataclass
class Workplace:
    """A folder with `data/` and `runs/`, in which `segdist` is run."""

    folder: Path

    def run(self, *words: str | Path, **variables: str) -> str:
        """Run a command as a user would; return its output."""
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), **variables}  # nodes import `tests` from the checkout
        done = subprocess.run(words, cwd=self.folder, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def segdist(self, *arguments: str) -> str:
        """Run `segdist …`; return its output."""
        return self.run(sys.executable, "-m", "jobs.cli", *arguments)

    def standing(self, run: str, name: str) -> Standing:
        """Status of a link of a run."""
        return {item.record.name: item for item in standings(self.folder / "runs" / run / "slurm")}[name]

    def wait_for(self, run: str, name: str, what: str, condition: Callable[[Standing], bool]) -> Standing:
        """Wait until a link's status meets `condition`; fail at once if it has ended otherwise."""
        return wait_for(f"{run}: {name} {what}", condition, lambda: self.standing(run, name))

    def finish(self, run: str, name: str) -> Standing:
        """Wait until a link has finished."""
        return self.wait_for(run, name, "finished", lambda now: now.finished and not now.alive)

    def reach(self, run: str, step: int) -> None:
        """Wait until a training has a checkpoint of this step or a later one."""
        wait_until(f"{run}: step {step}", lambda: self.step(run) >= step, ended(lambda: self.standing(run, "train")))

    def step(self, run: str) -> int:
        """Step of the newest checkpoint, or 0."""
        return last_step(self.folder / "runs" / run)

    def job(self, run: str, name: str) -> str:
        """Id of a link's latest job."""
        return self.standing(run, name).record.job_id

    def log(self, run: str) -> str:
        """All output of a run's jobs."""
        return "\n".join(path.read_text() for path in sorted((self.folder / "runs" / run / "slurm").rglob("*_log.*")))


@dataclass
class Battered:
    """Observations of a run that was interrupted repeatedly."""

    starts_after: dict[str, int] = field(default_factory=dict)
    """Kind of interruption → number of starts once the job ran again."""
    cancelled: Standing | None = None


@pytest.fixture(scope="module")
def workplace(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A workplace with the profiles and the shard set `cells`, built in one process."""
    place = Workplace(tmp_path_factory.mktemp("workplace"))
    (place.folder / "profile.toml").write_text(PROFILE)
    (place.folder / "torchrun.toml").write_text(TORCHRUN)
    (place.folder / "calm.toml").write_text(CALM)
    (place.folder / "battered.toml").write_text(BATTERED.replace("NODES", "node[3-4]"))
    (place.folder / "crashed.toml").write_text(BATTERED.replace("NODES", "node[5-6]").replace("battered", "crashed"))
    (place.folder / "shrinking.toml").write_text(SHRINKING)
    (place.folder / "pipeline.json").write_text(json.dumps(PIPELINE))
    (place.folder / ".venv").symlink_to(Path(sys.prefix))
    (place.folder / "runs" / "logs").mkdir(parents=True)
    place.segdist("make-shards", "-f", "cells", *SET, "--processes", "1")
    return place


@pytest.fixture(scope="module")
def parts(cluster: Cluster, workplace: Workplace) -> Iterator[dict[str, Future[Any]]]:
    """All long parts, run concurrently; some need the model that another trains."""
    first = (whole_pipeline, other_pipeline, calm_run, battered_run, local_pipeline, plain_sbatch, shrunk_run)
    second = (crashed_inference, array_inference)
    with ThreadPoolExecutor(len(first) + len(second)) as pool:
        started: dict[str, Future[Any]] = {part.__name__: pool.submit(part, workplace, cluster) for part in first}

        def after_the_pipeline(part: Callable[[Workplace, Cluster], Any]) -> Any:
            started["whole_pipeline"].result()
            started["shrunk_run"].result()  # uses the nodes that the next part crashes
            return part(workplace, cluster)

        yield started | {part.__name__: pool.submit(after_the_pipeline, part) for part in second}


SUBMIT_WHOLE = (
    "submit", "pipeline", "--config", "pipeline.json", "--profile", "profile.toml", "--name", "whole",
    "--shard-tasks", "3",
)  # fmt: skip


def whole_pipeline(workplace: Workplace, cluster: Cluster) -> str:
    """make-shards (array) → manifest → train → infer → report, on 2 nodes."""
    said = workplace.segdist(*SUBMIT_WHOLE)
    workplace.finish("whole", "report")
    return said


def other_pipeline(workplace: Workplace, cluster: Cluster) -> None:
    """The same pipeline under another name, concurrently: training with torchrun, inference as an array."""
    workplace.segdist(
        "submit", "pipeline", "--config", "pipeline.json", "--profile", "torchrun.toml", "--name", "other",
        "--infer-tasks", "2",
    )  # fmt: skip
    workplace.finish("other", "report")


def local_pipeline(workplace: Workplace, cluster: Cluster) -> str:
    """The same pipeline without Slurm."""
    return workplace.segdist(
        "submit", "pipeline", "--config", "pipeline.json", "--profile", "local", "--cluster", "local", "--name", "local"
    )


def calm_run(workplace: Workplace, cluster: Cluster) -> None:
    """An uninterrupted training, with the shard set staged to the nodes first."""
    workplace.segdist(
        "submit", "train", "--profile", "calm.toml", "--stage-to", str(workplace.folder / "node-disk"),
        "--", *TRAINING, "--name", "calm",
    )  # fmt: skip
    workplace.finish("calm", "train")


def battered_run(workplace: Workplace, cluster: Cluster) -> Battered:
    """The same training on the two nodes that are preempted and crashed."""
    seen = Battered()
    brake = Brake(workplace.folder / "battered-brake")
    submit = ("submit", "train", "--profile", "battered.toml", "--", *TRAINING, "--name", "battered")

    def let_it_train() -> None:
        """Let it train until the current start has a checkpoint, then nearly stop it."""
        brake.set(GENTLY)
        workplace.reach("battered", workplace.step("battered") + 5)
        brake.set(HARD)

    def next_start(kind: str, starts: int) -> None:
        now = workplace.wait_for("battered", "train", f"runs after {kind}", lambda now: now.starts >= starts)
        seen.starts_after[kind] = now.starts

    brake.set(GENTLY)
    workplace.segdist(*submit)
    let_it_train()
    urgent = workplace.folder / "urgent"
    place("greet", toy("greet", urgent), partition="urgent", nodelist="node3", exclusive=True)
    next_start("preemption", 2)

    let_it_train()
    cluster.crash("node4")
    workplace.wait_for("battered", "train", "waits for the node", lambda now: now.state == "PENDING")
    cluster.boot("node4")
    next_start("node crash", 3)

    let_it_train()
    subprocess.run(["scancel", workplace.job("battered", "train")], check=True)
    wait_until("the training is cancelled", lambda: not workplace.standing("battered", "train").alive)
    seen.cancelled = workplace.standing("battered", "train")

    workplace.segdist(*submit)
    let_it_train()
    # Move the limit to now; within a minute, Slurm enforces it, starting with the profile's signal.
    job = f"JobId={workplace.job('battered', 'train')}"
    subprocess.run(["scontrol", "update", job, "TimeLimit=2"], check=True)
    next_start("time limit", 2)
    subprocess.run(["scontrol", "update", job, "TimeLimit=60"], check=True)
    brake.release()
    workplace.finish("battered", "train")
    return seen


EXACT = (*TRAINING, "--exact", "--threads", "1", "--tracking.wandb", "off")


def shrunk_run(workplace: Workplace, cluster: Cluster) -> str:
    """An exact training that finishes after losing a node, and the same in one process; return the former's log."""
    brake = Brake(workplace.folder / "shrunk-brake")
    brake.set(GENTLY)
    workplace.segdist("submit", "train", "--profile", "shrinking.toml", "--", *EXACT, "--name", "shrunk")
    workplace.reach("shrunk", 10)
    brake.set(HARD)
    cluster.crash("node6")
    try:
        workplace.wait_for("shrunk", "train", "runs on one node", lambda now: now.starts >= 2)
        brake.release()
        workplace.finish("shrunk", "train")
    finally:
        cluster.boot("node6")
    workplace.segdist("train", *EXACT, "--name", "alone")
    return workplace.log("shrunk")


MASKS = ("-m", "runs/whole", "-f", "whole", "--split", "train", "--overlap", "0.75", "--output.figures", "0")


def crashed_inference(workplace: Workplace, cluster: Cluster) -> tuple[int, Standing]:
    """An inference that loses a node and one that doesn't; return images finished at the crash and the final status."""
    brake = Brake(workplace.folder / "crashed-brake")
    brake.set(GENTLY)
    workplace.segdist("submit", "infer", "--profile", "profile.toml", "--", *MASKS, "--out", "calm-masks")
    workplace.segdist("submit", "infer", "--profile", "crashed.toml", "--", *MASKS, "--out", "masks")
    logs = workplace.folder / "masks" / "state" / "finished"

    def count() -> int:
        return sum(log.read_bytes().count(b"\n") for log in logs.glob("*.jsonl"))

    finished = ended(lambda: workplace.standing("whole", "infer-masks"))
    wait_until("two images are finished", lambda: count() >= 2, finished)
    brake.set(HARD)
    cluster.crash("node6")
    workplace.wait_for("whole", "infer-masks", "waits for the node", lambda now: now.state == "PENDING")
    kept = count()
    brake.release()
    cluster.boot("node6")
    workplace.finish("whole", "infer-calm-masks")
    return kept, workplace.finish("whole", "infer-masks")


def array_inference(workplace: Workplace, cluster: Cluster) -> None:
    """The pipeline's inference again, as a job array."""
    workplace.segdist(
        "submit", "infer", "--profile", "profile.toml", "--tasks", "2",
        "--", "-m", "runs/whole", "-f", "whole", "--out", "array", "--output.figures", "1",
    )  # fmt: skip
    workplace.finish("whole", "infer-array-merge")


def plain_sbatch(workplace: Workplace, cluster: Cluster) -> str:
    """The sbatch templates (without submitit), with a signal to the training; return the training's log."""
    templates = CHECKOUT / "slurm" / "templates"
    brake = Brake(workplace.folder / "plain-brake")
    brake.set(GENTLY)

    def sbatch(template: str, *arguments: str, options: tuple[str, ...] = (), after: str = "") -> str:
        chained = (f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes") if after else ()
        words = ("sbatch", "--parsable", "--mem=3G", "--exclude=node[3-6]", *chained, *options)
        script = templates / f"{template}.sbatch"
        return workplace.run(*words, script, *arguments, **{BRAKE: str(brake.path)}).strip()

    def gone(job: str) -> Callable[[], str]:
        times = 0

        def reason() -> str:
            nonlocal times
            state = state_of(job)
            times = 0 if state in ALIVE else times + 1
            logs = sorted((workplace.folder / "runs" / "logs").glob("*.log"))
            return f"job {job}: {state}\n" + "\n".join(path.read_text() for path in logs) if times >= 3 else ""

        return reason

    shards = sbatch("make_shards", "-f", "plain", *SET, options=("--array=0-1",))
    finish = sbatch("make_shards", "-f", "plain", *SET, "--finish", after=shards)
    training = sbatch(
        "train", "-f", "plain", "--steps", "120", "--epoch-steps", "60", *NETWORK, "--checkpoint.every-steps", "5",
        "--tracking.wandb", "off", options=("--ntasks-per-node=2",), after=finish,
    )  # fmt: skip
    inference = sbatch("infer", "-m", "plain", "-f", "plain", options=("--ntasks-per-node=2",), after=training)
    log = workplace.folder / "runs" / "logs" / f"segdist-train_{training}.log"
    wait_until("it trains", lambda: workplace.step("plain") >= 5, gone(training))
    brake.set(HARD)
    subprocess.run(["scancel", "--signal=USR2", training], check=True)
    wait_until("it resumes", lambda: "resuming after step" in log.read_text(), gone(training))
    brake.release()
    scores = workplace.folder / "runs/plain/predictions/plain/scores.json"
    wait_until("there are scores", scores.exists, gone(inference))
    return log.read_text()


def last_checkpoint(workplace: Workplace, run: str) -> dict[str, Any]:
    """The checkpoint of the last step."""
    path = workplace.folder / "runs" / run / "checkpoints" / f"step-{STEPS:08}.pt"
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries and lists into one dictionary."""
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
    links = ["make-shards", "finish-shards", "train", "infer", "report"]
    queue = workplace.segdist("queue", "whole").splitlines()[1:][: len(links)]  # more inferences may follow
    assert [line.split()[1] for line in queue] == links
    assert all("COMPLETED" in line for line in queue)
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


def test_concurrent_pipelines_do_not_interfere_and_torchrun_gives_the_bits_of_srun(
    parts: dict[str, Future[Any]], workplace: Workplace
) -> None:
    parts["whole_pipeline"].result()
    parts["other_pipeline"].result()
    runs = [workplace.folder / "runs" / name for name in ("whole", "other")]
    one, other = (load_file(run / "last.safetensors") for run in runs)
    assert one.keys() == other.keys()
    assert all(torch.equal(weights, other[name]) for name, weights in one.items())
    masks = [run / "predictions" / run.name / "masks" for run in runs]
    names = sorted(path.name for path in masks[0].iterdir())
    assert filecmp.cmpfiles(*masks, names, shallow=False) == (names, [], [])
    script = next((runs[1] / "slurm").glob(f"*/{workplace.job('other', 'train')}_submission.sh")).read_text()
    assert "--ntasks-per-node=1" in script
    assert "4 ranks on cpu" in workplace.log("other")


def test_a_resubmitted_pipeline_reuses_finished_work(parts: dict[str, Future[Any]], workplace: Workplace) -> None:
    parts["whole_pipeline"].result()
    assert workplace.segdist(*SUBMIT_WHOLE).count("finished already") == 5


def test_the_pipeline_runs_without_slurm_and_says_so(parts: dict[str, Future[Any]], workplace: Workplace) -> None:
    said = parts["local_pipeline"].result()
    assert "no Slurm: the jobs run here, one after another" in said
    scores = json.loads((workplace.folder / "runs/local/predictions/local/scores.json").read_text())
    assert scores["mean_iou_over_images"] > 0.4
    assert "2 ranks on cpu" in workplace.log("local")


@pytest.mark.parametrize(("kind", "starts"), [("preemption", 2), ("node crash", 3), ("time limit", 2)])
def test_a_training_resumes_after(kind: str, starts: int, parts: dict[str, Future[Any]]) -> None:
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


def test_an_exact_training_that_loses_a_node_ends_with_the_bits_of_a_single_process(
    parts: dict[str, Future[Any]], workplace: Workplace
) -> None:
    log: str = parts["shrunk_run"].result()
    assert "2 ranks on cpu" in log
    assert "1 ranks on cpu" in log
    assert len({digest(workplace.folder / "runs" / name) for name in ("alone", "shrunk")}) == 1


def test_an_interrupted_run_stays_one_run_in_wandb(parts: dict[str, Future[Any]], workplace: Workplace) -> None:
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


def test_an_inference_resumes_after_a_node_crash_with_the_same_masks(
    parts: dict[str, Future[Any]], workplace: Workplace
) -> None:
    kept, standing = parts["crashed_inference"].result()
    assert standing.starts == 2
    calm, crashed = (workplace.folder / name / "masks" for name in ("calm-masks", "masks"))
    names = sorted(path.name for path in calm.iterdir())
    assert 2 <= kept < len(names)
    assert filecmp.cmpfiles(calm, crashed, names, shallow=False) == (names, [], [])


def test_an_array_over_images_merges_to_the_same_masks_and_scores(
    parts: dict[str, Future[Any]], workplace: Workplace
) -> None:
    parts["array_inference"].result()
    whole, array = workplace.folder / "runs/whole/predictions/whole", workplace.folder / "array"
    names = [f"masks/{path.name}" for path in (whole / "masks").iterdir()]
    assert filecmp.cmpfiles(whole, array, names, shallow=False) == (names, [], [])
    read = [json.loads((folder / "scores.json").read_text())["mean_iou_over_images"] for folder in (whole, array)]
    assert read[0] == read[1]


def test_the_sbatch_templates_work_without_submitit(parts: dict[str, Future[Any]]) -> None:
    log = parts["plain_sbatch"].result()
    assert "with a checkpoint" in log
    assert "resuming after step" in log
