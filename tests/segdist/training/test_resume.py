"""Runs that are killed repeatedly and resumed end with the bits of an uninterrupted run."""

import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from segdist.runs.record import read_rows
from tests.support.programs import QUIET, TINY_NET, job, kill_all, run, start, wait_until
from tests.support.states import assert_same_run, last_step, metrics

pytestmark = pytest.mark.slow

STEPS = 60
SETTINGS = [
    *("-f", "tiny", "-b", "12", "--steps", str(STEPS), "--log-every", "7", "--validate-every", "20"),
    *("--checkpoint.every-steps", "3", "--optim.optimizer", "adamw", "--optim.ema-decay", "0.9"),
]


def train(name: str, ranks: int, settings: Sequence[str] = (), norm: str = "batch") -> list[str]:
    # Batch norm is the harder case, since it has running statistics and group norm does not.
    return job("train", [*SETTINGS, "--name", name, *TINY_NET, "--model.norm", norm, *QUIET, *settings], ranks)


@pytest.mark.parametrize(("ranks", "kills"), [(1, 4), (2, 3), (4, 2)])
def test_random_kills_do_not_change_the_result(work: Path, ranks: int, kills: int) -> None:
    whole, killed = f"whole-{ranks}", f"killed-{ranks}"
    run(train(whole, ranks), work)
    generator = random.Random(ranks)
    log = work / f"{killed}.log"
    for kill in range(kills):
        process = start(train(killed, ranks), work, log)
        # Each start makes progress but none finishes; a fast machine takes some steps between check and kill.
        goal = last_step(work / "runs" / killed) + generator.randint(1, STEPS // 2 // kills)
        wait_until(lambda: last_step(work / "runs" / killed) >= goal or process.poll() is not None)  # noqa: B023
        time.sleep(generator.random() * 0.05 * (kill > 0))
        kill_all(process, killed, work)
    run(train(killed, ranks), work)
    assert_same_run(work / "runs" / whole, work / "runs" / killed)
    assert [row["what"] for row in read_rows(work / "runs" / killed / "events.jsonl")].count("resumed") >= 2


def test_kills_while_writing_a_checkpoint_do_not_change_the_result(work: Path) -> None:
    """A larger model writes a checkpoint every step and is killed when a half-written file appears."""
    settings = ["--checkpoint.every-steps", "1", "--model.width", "24", "--no-check", "--steps", "12"]
    run(train("large", 1, settings), work)
    folder = work / "runs" / "large-killed" / "checkpoints"
    for _ in range(3):
        before = set(folder.glob(".step-*.tmp"))
        process = start(train("large-killed", 1, settings), work, work / "large.log")
        while True:
            process.send_signal(signal.SIGSTOP)  # so that the file is still half-written when the kill arrives
            time.sleep(0.002)
            if set(folder.glob(".step-*.tmp")) - before:
                break
            assert process.poll() is None, "it ended before a kill hit a checkpoint that was being written"
            process.send_signal(signal.SIGCONT)
            time.sleep(0.01)
        kill_all(process, "large-killed", work)
        assert set(folder.glob(".step-*.tmp")) - before
    run(train("large-killed", 1, settings), work)
    assert_same_run(work / "runs" / "large", work / "runs" / "large-killed")


def test_a_damaged_last_checkpoint_costs_only_the_steps_since_the_previous_one(work: Path) -> None:
    run(train("intact", 1), work)
    folder = work / "runs" / "damaged"
    process = start(train("damaged", 1), work, work / "damaged.log")
    wait_until(lambda: last_step(folder) >= 24)
    kill_all(process, "damaged", work)
    last = max((folder / "checkpoints").glob("step-*.pt"))
    last.write_bytes(last.read_bytes()[:-1000])
    done = run(train("damaged", 1), work)
    assert f"{last.name}: damaged checkpoint" in done.stderr
    assert_same_run(work / "runs" / "intact", folder)


def test_another_number_of_ranks_continues_with_the_same_samples(work: Path) -> None:
    """With group norm, whose arithmetic is independent of the batch, losses agree up to rounding; with SGD, because
    AdamW turns the rounding of gradients near 0 into whole steps."""
    settings = ["--optim.optimizer", "sgd", "--optim.lr", "0.01"]
    run(train("one-rank", 1, settings, norm="group"), work)
    folder = work / "runs" / "elastic"
    process = start(train("elastic", 2, settings, norm="group"), work, work / "elastic.log")
    wait_until(lambda: last_step(folder) >= 15)
    kill_all(process, "elastic", work)
    process = start(train("elastic", 3, settings, norm="group"), work, work / "elastic.log")
    wait_until(lambda: last_step(folder) >= 36)
    kill_all(process, "elastic", work)
    run(train("elastic", 1, settings, norm="group"), work)
    one, other = metrics(work / "runs" / "one-rank"), metrics(folder)
    assert [(row["kind"], row["step"]) for row in one] == [(row["kind"], row["step"]) for row in other]
    for row, same in zip(one, other, strict=True):
        assert row["loss"] == pytest.approx(same["loss"], rel=2e-4)
