"""Several ranks: the same sums, the same scores, and no waiting for dead ranks."""

import json
import os
import re
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from segdist.model.model_file import load_model
from segdist.runs.record import read_rows
from tests.support.programs import QUIET, ROOT, TINY_NET, free_port, kill_all, processes, run, script, start, wait_until
from tests.support.states import metrics

pytestmark = pytest.mark.slow


def train(
    name: str, *settings: str, ranks: int = 1, torchrun: Sequence[str] = (), program: Path = ROOT / "jobs" / "train.py"
) -> list[str]:
    arguments = ["-f", "tiny", "--name", name, "-b", "16", "--log-every", "2", *TINY_NET, *QUIET, *settings]
    return script(program, arguments, ranks, torchrun)


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in load_model(folder)[0].parameters()])


@pytest.mark.parametrize(
    ("program", "steps", "rtol", "atol"),
    [
        (ROOT / "jobs" / "train.py", 2, 1e-3, 1e-5),
        (ROOT / "tests" / "support" / "train_in_double.py", 8, 1e-6, 1e-9),
    ],
    ids=["single", "double"],
)
def test_one_rank_with_16_samples_and_several_with_fewer_learn_the_same(
    work: Path, program: Path, steps: int, rtol: float, atol: float
) -> None:
    """This includes uneven shares of 16 and accumulation; with group norm, results agree up to rounding."""
    settings = ["--steps", str(steps), "--optim.lr", "0.1", "--loss.name", "cross_entropy+dice"]
    cases: dict[str, tuple[int, list[str]]] = {
        "r1": (1, []),
        "r1a3": (1, ["--accumulate", "3"]),
        "r2a2": (2, ["--accumulate", "2"]),
        "r3": (3, []),
        "r4": (4, []),
    }
    for name, (ranks, more) in cases.items():
        run(train(f"{name}-{steps}", *settings, *more, ranks=ranks, program=program), work)
    folders = {name: work / "runs" / f"{name}-{steps}" for name in cases}
    expected, rows = weights(folders["r1"]), metrics(folders["r1"])
    for folder in folders.values():
        torch.testing.assert_close(weights(folder), expected, rtol=rtol, atol=atol)
        for row, other in zip(rows, metrics(folder), strict=True):
            assert row["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_validation_gives_the_same_integers_on_1_2_3_and_4_ranks(work: Path) -> None:
    """The weights are the same (a rate of almost 0); batches divide neither the patches nor the ranks evenly."""
    matrices = []
    for ranks in (1, 2, 3, 4):
        run(train(f"val{ranks}", "--steps", "1", "--optim.lr", "1e-30", "-b", "5", ranks=ranks), work)
        row = [row for row in metrics(work / "runs" / f"val{ranks}") if row["kind"] == "val"][-1]
        matrices.append((row["confusion_matrix"], row["loss"], row["mean_iou"]))
    assert all(matrix == matrices[0] for matrix in matrices[1:])
    manifest = json.loads((work / "data" / "tiny" / "manifest.json").read_text())
    patches = sum(shard["samples"] for shard in manifest["shards"] if shard["split"] == "val")
    assert sum(map(sum, matrices[0][0])) == patches * 32 * 32


def test_the_other_ranks_exit_when_one_dies(work: Path) -> None:
    log = work / "dies.log"
    process = start(train("dies", "--steps", "100000", ranks=2), work, log)
    wait_until(lambda: (work / "runs" / "dies" / "metrics.jsonl").exists() and metrics(work / "runs" / "dies"))
    worker = worker_of_rank("dies", 1, work)
    os.kill(worker, signal.SIGKILL)
    assert process.wait(60) != 0


def test_torchrun_restarts_from_the_last_checkpoint(work: Path) -> None:
    settings = ["--steps", "400", "--checkpoint.every-steps", "5"]
    torchrun = ["--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    process = start(train("restarts", *settings, torchrun=torchrun), work, work / "restarts.log")
    folder = work / "runs" / "restarts"
    wait_until(lambda: any((folder / "checkpoints").glob("step-*.pt")))
    worker = worker_of_rank("restarts", 1, work)
    os.kill(worker, signal.SIGKILL)
    assert process.wait(120) == 0, (work / "restarts.log").read_text()
    what = [row["what"] for row in read_rows(folder / "events.jsonl")]
    assert (what[0], what[-2:]) == ("started", ["resumed", "finished"])


def test_training_continues_on_fewer_nodes_after_losing_one(work: Path) -> None:
    """With --nnodes=1:2 on loopback, one of two agents is killed with its worker; the other continues alone."""
    settings = ["--steps", "300", "--checkpoint.every-steps", "5", "--threads", "1"]
    port = free_port()

    def agent(name: str) -> list[str]:
        endpoint = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=elastic"]
        torchrun = ["--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3", *endpoint]
        # The second name only labels the processes of this node.
        return train("shrinks", *settings, "--tracking.group", name, torchrun=torchrun)

    folder = work / "runs" / "shrinks"
    first = start(agent("node-a"), work, work / "a.log")
    # The endpoint must be on the surviving node, since a job can't continue without its store.
    wait_until(lambda: listening(port))
    second = start(agent("node-b"), work, work / "b.log")
    wait_until(lambda: any(row.get("ranks") == 2 for row in read_rows(folder / "events.jsonl")), 90)
    wait_until(lambda: any((folder / "checkpoints").glob("step-*.pt")))
    kill_all(second, "node-b", work)
    assert first.wait(180) == 0, (work / "a.log").read_text()
    events = read_rows(folder / "events.jsonl")
    assert events[-1]["what"] == "finished"
    assert events[-1]["step"] == 300
    assert [row["ranks"] for row in events if "ranks" in row][-1] == 1


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def worker_of_rank(name: str, rank: int, work: Path) -> int:
    """The process of a rank, found by its command and environment."""
    found = [number for number, environ in processes(name, work) if re.search(rb"(^|\0)RANK=%d\0" % rank, environ)]
    assert len(found) == 1
    return found[0]
