"""The training job as a process: its run folder, resuming, extending, stopping and refusals."""

import json
import re
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from segdist.model.model_file import load_model
from segdist.ranks.stop import SECOND_INTERRUPT_AFTER
from segdist.runs.record import read_rows
from tests.support.programs import QUIET, TINY_NET, environment, job, run, start, wait_until
from tests.support.sets import tiny_set
from tests.support.states import assert_same_run, metrics


def train(name: str, *arguments: str, ranks: int = 1) -> list[str]:
    settings = ["-f", "tiny", "--name", name, "-b", "8", "--log-every", "5", *TINY_NET, *QUIET]
    return job("train", [*settings, *arguments], ranks)


def test_a_run_writes_a_complete_folder(work: Path) -> None:
    folder = work / "runs" / "complete"
    run(train("complete", "--steps", "12", "--validate-every", "6"), work)
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "events.jsonl", "summary.json", "best.safetensors", "checkpoints"}
    rows = metrics(folder)
    assert [(row["kind"], row["step"]) for row in rows] == [
        *[("train", 5), ("val", 6), ("train", 10), ("train", 12), ("val", 12)]
    ]
    assert len(rows[1]["iou"]) == 3
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["state"], summary["step"]) == ("finished", 12)
    assert summary["best_mean_iou"] == max(row["mean_iou"] for row in rows if row["kind"] == "val")
    model, card = load_model(folder)
    assert model(torch.rand(1, 1, 32, 32)).shape == (1, 3, 32, 32)
    assert [info.name for info in card.classes] == ["background", "line", "ellipse"]
    assert (card.patch, card.channels, card.stride_multiple) == (32, 1, 4)
    assert card.score == summary["best_mean_iou"]


@pytest.mark.slow
def test_training_learns(work: Path) -> None:
    run(train("learns", "--steps", "120", "--optim.optimizer", "adamw", "--optim.lr", "0.02"), work)
    rows = [row for row in metrics(work / "runs" / "learns") if row["kind"] == "train"]
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]


@pytest.mark.slow
def test_a_finished_run_is_left_alone_and_can_be_extended(work: Path) -> None:
    folder = work / "runs" / "extended"
    constant = ["--optim.schedule", "constant", "--validate-every", "5"]
    run(train("extended", "--steps", "5", *constant), work)
    before = metrics(folder)
    run(train("extended", "--steps", "5", *constant), work)
    assert metrics(folder) == before
    run(train("extended", "--steps", "10", *constant), work)
    run(train("at_once", "--steps", "10", *constant), work)
    assert_same_run(folder, work / "runs" / "at_once")


@pytest.mark.slow
def test_other_settings_in_the_same_folder_are_refused_by_name(work: Path) -> None:
    run(train("taken", "--steps", "2"), work)
    done = run(train("taken", "--steps", "4", "--seed", "1", "--optim.lr", "0.5"), work, check=False)
    assert done.returncode == 2
    assert "seed: was 0, now 1" in done.stderr
    assert "optim.lr: was 0.01, now 0.5" in done.stderr
    assert "--name" in done.stderr
    tiny_set(work / "data", "other", seed=5)
    done = run(train("taken", "--steps", "4", "-f", "other"), work, check=False)
    assert done.returncode == 2
    assert "data: was" in done.stderr
    # Threads, intervals and trackers can change.
    run(train("taken", "--steps", "4", "--threads", "2", "--checkpoint.keep-last", "5"), work)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT"])
def test_a_signal_stops_with_a_checkpoint_and_the_run_resumes_bit_for_bit(work: Path, name: str) -> None:
    if not (work / "runs" / "whole").exists():
        run(train("whole", "--steps", "120"), work)
    folder = work / "runs" / name
    log = work / f"{name}.log"
    process = start(train(name, "--steps", "120"), work, log)
    wait_until(lambda: (folder / "metrics.jsonl").exists() and metrics(folder))
    process.send_signal(getattr(signal, name))
    assert process.wait(60) == 75, log.read_text()
    assert name in log.read_text()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["state"] == "stopped"
    assert 0 < summary["step"] < 120
    run(train(name, "--steps", "120"), work)
    assert_same_run(folder, work / "runs" / "whole")
    assert [row["what"] for row in read_rows(folder / "events.jsonl")] == ["started", "stopped", "resumed", "finished"]


FULL = [*("--steps", "150", "--checkpoint.every-steps", "5", "--validate-every", "10")]
REFUSALS = [
    "last.safetensors: could not write the model",
    "metrics.jsonl: File too large; its rows and all checkpoints wait until there is disk space",
]


def refuse_writes(process: "subprocess.Popen[str]", refuse: bool) -> None:
    """Make the kernel refuse file writes beyond 100 bytes, as a full disk would."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100 if refuse else -1, -1))


@pytest.mark.slow
def test_resuming_on_a_full_disk_names_the_file(work: Path) -> None:
    run(train("resumed-full", "--steps", "4"), work)
    # The limit is set before the start, so a resume's first write is refused.
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # noqa: E731
    with subprocess.Popen(
        train("resumed-full", "--steps", "8"),
        cwd=work,
        env=environment(PYTHONDONTWRITEBYTECODE="1"),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
    ) as process:
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 2, said
    assert "error: runs/resumed-full: can't be written (File too large, in .owners/" in said
    assert "make room" in said
    run(train("resumed-full", "--steps", "8"), work)  # with space again, the same command resumes


@pytest.mark.slow
@pytest.mark.parametrize("lifted", [True, False])
def test_a_full_disk_neither_stops_the_run_nor_costs_work(work: Path, lifted: bool) -> None:
    if not (work / "runs" / "roomy").exists():
        run(train("roomy", *FULL), work)
    name = f"full-{lifted}"
    folder = work / "runs" / name
    # Its output goes through a pipe, to which the limit doesn't apply.
    with subprocess.Popen(
        train(name, *FULL), cwd=work, env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        wait_until(lambda: list((folder / "checkpoints").glob("step-*.pt")))
        refuse_writes(process, True)
        said = ""
        while any(refusal not in said for refusal in REFUSALS):
            said += next(process.stderr)
        if lifted:
            refuse_writes(process, False)
        said += process.stderr.read()
    if lifted:
        assert process.returncode == 0, said
    else:
        assert process.returncode == 2, said
        assert "step 150 is done, but no checkpoint could be written after step" in said
        run(train(name, *FULL), work)
    assert_same_run(folder, work / "runs" / "roomy")


@pytest.mark.slow
def test_a_second_ctrl_c_does_not_wait_for_the_step(work: Path) -> None:
    log = work / "twice.log"
    slow = [
        "--model.factory",
        "tests.segdist.training.test_trainer:slow_model",
        "--model.stride-multiple",
        "1",
        "--no-check",
    ]
    process = start(train("twice", "--steps", "50", *slow), work, log)
    wait_until((work / "runs" / "twice" / "in-a-step").exists)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: "Ctrl-C again" in log.read_text())
    time.sleep(SECOND_INTERRUPT_AFTER + 0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(SlowModel.SECONDS / 2) == 130, log.read_text()


class SlowModel(torch.nn.Conv2d):
    """Takes minutes per step, and creates a file when a step starts."""

    SECONDS = 120

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        Path("runs/twice/in-a-step").touch()
        time.sleep(self.SECONDS)
        return super().forward(images)


def slow_model(in_channels: int, classes: int) -> torch.nn.Module:
    return SlowModel(in_channels, classes, 1)


@pytest.mark.slow
def test_repeated_bad_gradients_stop_the_run_and_name_the_samples(work: Path) -> None:
    command = train(
        "bad", "--steps", "50", "--model.factory", "tests.segdist.training.test_trainer:nan_model", "--no-check"
    )
    command += ["--model.stride-multiple", "1"]
    done = run(command, work, check=False)
    assert done.returncode == 2
    assert "NaN or infinite gradients in 10 steps in a row" in done.stderr
    assert re.search(r"data/tiny/train-0000\d\.tar record \d+", done.stderr)
    assert (work / "runs" / "bad" / "bad-batch-rank0.npz").is_file()
    assert json.loads((work / "runs" / "bad" / "summary.json").read_text())["state"] == "failed"


def nan_model(in_channels: int, classes: int) -> torch.nn.Module:
    """A model whose weights are broken from the start."""
    model = torch.nn.Conv2d(in_channels, classes, 1)
    torch.nn.init.constant_(model.weight, float("nan"))
    return model


@pytest.mark.slow
def test_a_warm_start_takes_matching_tensors_and_reports_the_others(work: Path) -> None:
    run(train("first", "--steps", "5"), work)
    arguments = ["--steps", "1", "--init-from", "runs/first", "--optim.lr", "1e-9"]
    command = [word for word in train("second", *arguments) if word != "--quiet"]
    assert "warm start: copied" in run(command, work).stdout
    first, second = (
        torch.cat([p.flatten() for p in load_model(work / "runs" / name)[0].parameters()])
        for name in ("first", "second")
    )
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-f", "nowhere"], "data/nowhere: no such shard set"),
        (["-b", "0"], "--batch-size 0"),
        (["-b", "100000"], "lower --batch-size"),
        (["--model.depth", "6"], "multiples of 64"),
        (["--loss.class-weights", "given"], "--loss.weights"),
        (["--loss.class-weights", "given", "--loss.weights", "1", "2"], "2 numbers for 3 classes"),
        (["--init-from", "nowhere"], "nowhere"),
        (["--device", "cuda"], "--device cuda"),
        (["--precision", "fp16"], "--precision fp16 needs a GPU"),
        (["--preset", "quick"], "--preset quick: choose one of auto, fast, paper"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(
    work: Path, arguments: list[str], message: str
) -> None:
    done = run([*train("refused"), *arguments], work, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (work / "runs" / "refused").exists()


@pytest.mark.slow
def test_a_dry_run_starts_nothing(work: Path) -> None:
    done = run([*train("planned", "-e", "3"), "--dry-run"], work)
    assert "optim.lr = 0.01" in done.stdout
    assert "patches for training" in done.stdout
    assert "memory per rank" in done.stdout
    assert not (work / "runs" / "planned").exists()


@pytest.mark.slow
def test_a_dry_run_refuses_what_the_run_would_refuse(work: Path) -> None:
    done = run([*train("planned"), "--dry-run", "--model.depth", "6"], work, check=False)
    assert done.returncode == 2
    assert "multiples of 64" in done.stderr
    run(train("held", "--steps", "1"), work)
    done = run([*train("held", "--steps", "1", "--seed", "1"), "--dry-run"], work, check=False)
    assert "seed: was 0, now 1" in done.stderr


@pytest.mark.slow
def test_a_damaged_record_is_named_by_the_rank_that_reads_it(work: Path) -> None:
    """Every shard has a flipped bit in its first header, so both ranks find one and must report it."""
    folder = tiny_set(work / "data", "hurt")
    for shard in folder.glob("train-*.tar"):
        content = bytearray(shard.read_bytes())
        content[0] ^= 1  # the first header: the file keeps its size
        shard.write_bytes(content)
    done = run([*train("hurt", "--steps", "2", ranks=2), "-f", "hurt"], work, check=False)
    assert done.returncode != 0
    assert "data/hurt/train-" in done.stderr
    assert "rank 1" in done.stderr


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="NO g++ HERE: torch.compile needs it on a CPU and was not run")
def test_a_compiled_network_learns_the_same_and_resumes_bit_for_bit(work: Path) -> None:
    runs, log = work / "runs", work / "compiled.log"
    run(train("eager", "--steps", "120"), work)
    run(train("compiled", "--steps", "120", "--compile"), work)
    losses = [[row["loss"] for row in metrics(runs / name)[:3]] for name in ("eager", "compiled")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    process = start(train("compiled-stopped", "--steps", "120", "--compile"), work, log)
    wait_until(lambda: (runs / "compiled-stopped" / "metrics.jsonl").exists() and metrics(runs / "compiled-stopped"))
    process.terminate()
    assert process.wait(60) == 75, log.read_text()
    run(train("compiled-stopped", "--steps", "120", "--compile"), work)
    assert_same_run(runs / "compiled-stopped", runs / "compiled")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_on_a_gpu_every_precision_learns_and_resumes_bit_for_bit(work: Path, precision: str, compiled: bool) -> None:
    runs, name = work / "runs", f"gpu-{precision}-{compiled}"
    options = [
        *("--steps", "300", "--optim.optimizer", "adamw", "--optim.lr", "0.02", "--precision", precision),
        *("--device", "cuda", "--deterministic", *["--compile"] * compiled),
    ]
    run(train(name, *options), work)
    rows = [row for row in metrics(runs / name) if row["kind"] == "train"]
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]
    assert rows[-1]["skipped"] <= 2  # fp16 starts with a scale that can be too large
    stopped = f"{name}-stopped"
    process = start(train(stopped, *options), work, work / f"{stopped}.log")
    wait_until(lambda: (runs / stopped / "metrics.jsonl").exists() and metrics(runs / stopped), 300)
    process.terminate()
    assert process.wait(60) == 75, (work / f"{stopped}.log").read_text()
    run(train(stopped, *options), work)
    assert_same_run(runs / stopped, runs / name)


@pytest.mark.slow
def test_without_a_compiler_the_fix_is_named(work: Path) -> None:
    run_without = run(train("no-compiler", "--steps", "2", "--compile"), work, check=False, CXX="/no/such/compiler")
    assert run_without.returncode == 2, run_without.stderr
    assert "--compile failed" in run_without.stderr
    assert "Traceback" not in run_without.stderr


@pytest.mark.slow
def test_a_profile_is_written_on_request(work: Path) -> None:
    run(train("profiled", "--steps", "4", "--profile", "2"), work)
    assert "conv" in (work / "runs" / "profiled" / "profile" / "table.txt").read_text()
    assert (work / "runs" / "profiled" / "profile" / "trace.json").stat().st_size > 1000


@pytest.mark.slow
def test_several_sets_can_be_mixed(work: Path) -> None:
    tiny_set(work / "data", "second", seed=9)
    command = train("mixed", "--steps", "8", "--epoch-steps", "4", "--data-weights", "3", "1", "-f", "tiny", "second")
    run(command, work)
    rows = metrics(work / "runs" / "mixed")
    assert [row["step"] for row in rows if row["kind"] == "val"] == [4, 8]
    patches = sum(
        shard["samples"]
        for name in ("tiny", "second")
        for shard in json.loads((work / "data" / name / "manifest.json").read_text())["shards"]
        if shard["split"] == "val"
    )
    assert sum(map(sum, rows[-1]["confusion_matrix"])) == patches * 32 * 32
    done = run([*train("mixed-2", "--steps", "8"), "-f", "tiny", "second"], work, check=False)
    assert "--epoch-steps" in done.stderr
