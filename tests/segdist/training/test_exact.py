"""`--exact` and `segdist replay` as processes: the same bits on any number of ranks, whatever happens in between."""

import json
import random
import time
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from segdist.core.exit_codes import FINISHED, STOPPED
from segdist.core.machine import usable_cores
from segdist.runs.record import read_rows
from tests.support.braked import BRAKE, Brake
from tests.support.programs import QUIET, ROOT, job, run, wait_until
from tests.support.sets import tiny_set
from tests.support.states import digest, last_step, ranks_of_starts
from tests.support.warm_ranks import WarmRanks, warm_ranks

pytestmark = pytest.mark.slow

WORLD_SIZES = (1, 2, 3, 4, 5, 8)
STEPS = 45
SETTINGS = [
    *("-b", "32", "--grain", "4", "--steps", str(STEPS), "--log-every", "7", "--exact", "--threads", "1"),
    *("--checkpoint.every-steps", "2", "--validate-every", "20", "--checksum-every", "5"),
    *("--model.factory", "tests.support.braked:BrakedUNet", "--model.kwargs", '{"width": 4, "depth": 2}'),
    *("--optim.optimizer", "adamw", "--optim.ema-decay", "0.9"),
    *("--optim.clip-norm", "0.5", "--loss.name", "cross_entropy+dice"),
    *("--augment.rotate", "20", "--augment.noise", "0.05", "--augment.blur", "1"),
]
WITH_DROPOUT = [
    *("--model.factory", "tests.segdist.training.test_exact:with_dropout", "--model.kwargs", "{}"),
    *("--model.stride-multiple", "1"),
    *("--epoch-steps", "15", "--data-weights", "3", "1", "-f", "tiny", "second", "--steps", "20"),
]


def arguments(name: str, *settings: str) -> list[str]:
    return ["-f", "tiny", "--name", name, *SETTINGS, *QUIET, *settings]


def train(name: str, ranks: int = 1, *settings: str) -> list[str]:
    return job("train", arguments(name, *settings), ranks)


def start(work: Path, name: str, ranks: int, *settings: str) -> AbstractContextManager[WarmRanks]:
    return warm_ranks(ROOT / "jobs" / "train.py", arguments(name, *settings), ranks, work, work / f"{name}.log")


def with_dropout(in_channels: int, classes: int) -> nn.Module:
    """Random numbers in the forward pass, and running statistics."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout2d(0.3), nn.Conv2d(8, classes, 1)
    )


@pytest.fixture(scope="module")
def alone(work: Path) -> str:
    """The digest of the run on one rank."""
    run(train("alone"), work)
    return digest(work / "runs" / "alone")


@pytest.mark.parametrize("ranks", WORLD_SIZES[1:])
def test_any_number_of_ranks_ends_with_the_same_bits(work: Path, alone: str, ranks: int) -> None:
    with start(work, f"ranks-{ranks}", ranks) as started:
        assert started.wait() == FINISHED
    assert digest(work / "runs" / f"ranks-{ranks}") == alone


def test_the_number_of_ranks_may_change_at_any_moment(work: Path, alone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten kills and requests to stop at random moments, and another number of ranks each time."""
    generator = random.Random(17)
    brake = Brake(work / "brake")
    brake.set(0.1)  # a step takes at least this long, so that the run isn't over before the last start
    monkeypatch.setenv(BRAKE, str(brake.path))
    folder, log = work / "runs" / "changing", work / "changing.log"
    *stopped, last = generator.sample(WORLD_SIZES, 6) + generator.sample(WORLD_SIZES, 5)
    assert all(before != after for before, after in pairwise([*stopped, last]))
    for number, ranks in enumerate(stopped):
        began = last_step(folder)
        goal = began + generator.randint(1, 2)
        with start(work, "changing", ranks) as started:
            wait_until(lambda: last_step(folder) >= goal or not started.running, 180)  # noqa: B023
            time.sleep(generator.random() * 0.2)
            if generator.random() < 0.5:
                started.terminate()
                assert started.wait(60) == STOPPED
        # Otherwise the end of the block has killed them.
        assert began < last_step(folder) < STEPS, f"start {number}: {log.read_text()[-3000:]}"
    brake.release()
    with start(work, "changing", last) as started:
        assert started.wait() == FINISHED
    assert digest(folder) == alone
    assert ranks_of_starts(folder) == [*stopped, last]


def test_dropout_and_mixed_sets_keep_their_bits_too(work: Path) -> None:
    tiny_set(work / "data", "second", seed=9)
    digests = set()
    for ranks in (1, 3):
        with start(work, f"odd-{ranks}", ranks, *WITH_DROPOUT) as started:
            assert started.wait() == FINISHED
        digests.add(digest(work / "runs" / f"odd-{ranks}"))
    assert len(digests) == 1


def test_replay_finds_the_same_weights_on_another_number_of_ranks(work: Path, alone: str) -> None:
    for ranks, arguments in ((1, ["--step", "23"]), (2, ["--step", "40", "--from-start"])):
        before = sorted(path.name for path in (work / "runs" / "alone").rglob("*"))
        done = run(job("replay", [str(work / "runs" / "alone"), *arguments], ranks), work)
        assert "the same weights, bit by bit" in done.stdout
        assert sorted(path.name for path in (work / "runs" / "alone").rglob("*")) == before, "replay writes nothing"
    rows = {
        row["step"]: row["sha256"] for row in read_rows(work / "runs" / "alone" / "metrics.jsonl") if "sha256" in row
    }
    assert rows[40] in done.stdout
    assert {5, 10, 2, 45} <= set(rows)


def test_replay_names_the_step_and_the_tensor_where_the_weights_part(work: Path, alone: str) -> None:
    folder = work / "runs" / "altered"
    folder.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (folder / name).write_text((work / "runs" / "alone" / name).read_text())
    rows = read_rows(folder / "metrics.jsonl")
    row = next(row for row in rows if row["kind"] == "weights" and row["step"] == 10)
    row["tensors"][2] = "0" * 16
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run(job("replay", ["altered", "--step", "20"]), work, check=False)
    assert done.returncode == 3
    assert "the weights differ at step 10 (the last that agrees is 8)" in done.stdout
    names = list(torch.load(max((work / "runs" / "alone" / "checkpoints").glob("*.pt")))["learner"]["net"])
    assert done.stdout.splitlines()[-1].endswith(f": {names[2]}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--accumulate", "2"], "--exact can't be combined with --accumulate"),
        (["--compile"], "--exact can't be combined with --compile"),
        (["--sync-batch-norm"], "--exact can't be combined with --sync-batch-norm"),
        (["-b", "30"], "--batch-size 30 is not a multiple"),
        (["--grain", "0"], "--grain 0"),
    ],
)
def test_what_does_not_go_together_is_refused(work: Path, arguments: list[str], message: str) -> None:
    done = run(train("refused", 1, *arguments), work, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (work / "runs" / "refused").exists()


def test_threads_chip_and_build_belong_to_the_run(work: Path) -> None:
    folder, short = work / "runs" / "fixed", ["--steps", "2", "--threads"]
    cores = usable_cores()
    run(train("fixed", 1, *short, str(2 * cores)), work)
    assert json.loads((folder / "config.json").read_text())["config"]["threads"] == 2 * cores
    done = run(train("fixed", 1, *short, "0"), work)
    assert f"{2 * cores} threads share {cores} cores" in done.stderr
    assert json.loads((folder / "config.json").read_text())["config"]["threads"] == 2 * cores
    done = run(train("fixed", 1, *short, "1", "--grain", "8"), work, check=False)
    assert f"threads: was {2 * cores}, now 1" in done.stderr
    assert "grain: was 4, now 8" in done.stderr
    description = json.loads((folder / "config.json").read_text())
    description["machine"]["chip"] = "another one"
    (folder / "config.json").write_text(json.dumps(description))
    done = run(train("fixed", 1, *short, "0"), work, check=False)
    assert done.returncode == 2
    assert "machine.chip: was 'another one', now" in done.stderr
    assert "--init-from" in done.stderr
    done = run([*train("fixed", 1, *short, "0"), "--dry-run"], work, check=False)
    assert "machine.chip: was 'another one', now" in done.stderr


def test_replay_wants_an_exact_run(work: Path) -> None:
    run(
        job("train", ["-f", "tiny", "--name", "inexact", "-b", "8", "--steps", "1", "--model.width", "4", *QUIET]), work
    )
    done = run(job("replay", ["inexact", "--step", "1"]), work, check=False)
    assert (done.returncode, "trained without --exact" in done.stderr) == (2, True)
    done = run(job("replay", ["nowhere", "--step", "1"]), work, check=False)
    assert (done.returncode, "nowhere" in done.stderr) == (2, True)


def test_more_ranks_than_grains_are_refused(work: Path) -> None:
    done = run(train("many", 2, "-b", "4"), work, check=False)
    assert "2 ranks share a global batch of 4 in grains of 4" in done.stderr
