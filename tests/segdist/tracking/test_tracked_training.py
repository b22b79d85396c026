"""Tracking in the jobs: one W&B run per run folder, no needless runs, refusals before the work starts."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from segdist.runs.record import read_rows
from segdist.tracking.wandb_pieces import rows_in
from tests.support.programs import TINY_NET, job, kill_all, run, start, wait_until
from tests.support.wandb_server import wandb_server

pytestmark = pytest.mark.slow


def train(name: str, *arguments: str) -> list[str]:
    return job("train", ["-f", "tiny", "--name", name, "-b", "8", "--log-every", "2", *TINY_NET, *arguments])


def run_ids(folder: Path) -> list[str]:
    """The W&B id of each piece."""
    return [piece.name.rpartition("-")[2] for piece in sorted((folder / "wandb").glob("*run-*"))]


def test_the_checkpoint_restores_the_run_id_if_wandb_files_are_lost(work: Path) -> None:
    folder = work / "runs" / "lost"
    run(train("lost", "--steps", "3", "--wandb", "offline"), work)
    (before,) = run_ids(folder)
    shutil.rmtree(folder / "wandb")
    run(train("lost", "--steps", "6", "--wandb", "offline"), work)
    assert run_ids(folder) == [before]


def test_model_and_last_checkpoint_are_artifacts_on_request(work: Path) -> None:
    for name, options in (("kept", ["--tracking.artifacts"]), ("not-kept", [])):
        run(train(name, "--steps", "3", "--wandb", "offline", *options), work)
        (piece,) = (work / "runs" / name / "wandb").glob("offline-run-*")
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(piece)]
        records = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for artifact in (f"{name}-best", f"{name}-checkpoint"):
            assert (artifact in records) == bool(options)


def test_a_killed_training_continues_its_run_with_every_row_once(work: Path) -> None:
    folder = work / "runs" / "killed"
    with wandb_server() as server:
        home = {"HOME": str(work), "WANDB_BASE_URL": server.url, "WANDB_API_KEY": "x" * 40, "WANDB_MODE": "online"}
        settings = ["--steps", "400", "--checkpoint.every-steps", "20", "--validate-every", "50"]
        process = start(train("killed", *settings), work, work / "killed.log", **home)
        wait_until(lambda: len(list((folder / "checkpoints").glob("step-*.pt"))) >= 2)
        kill_all(process, "killed", work)
        assert max(row["step"] for row in read_rows(folder / "metrics.jsonl")) < 400
        run(train("killed", *settings), work, **home)
        (tracked,) = server.runs.values()
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["trainer/step"] for row in tracked.history] == [0, *sorted({row["step"] for row in rows})]
    scores = {row["trainer/step"]: row["val/mean_iou"] for row in tracked.history if "val/mean_iou" in row}
    assert scores == {row["step"]: row["mean_iou"] for row in rows if row["kind"] == "val"}
    assert any(name.startswith("media/images/mask/") for name in tracked.files)


def test_tracking_started_late_gets_the_whole_run(work: Path) -> None:
    folder = work / "runs" / "late"
    run(train("late", "--steps", "4", "--wandb", "off"), work)
    run(train("late", "--steps", "8", "--wandb", "offline"), work)
    (piece,) = (folder / "wandb").glob("offline-run-*")
    assert [row.step for row in rows_in(piece)] == [
        0,
        *sorted({row["step"] for row in read_rows(folder / "metrics.jsonl")}),
    ]


def test_starting_a_finished_run_again_starts_no_tracker(work: Path) -> None:
    folder = work / "runs" / "twice"
    run(train("twice", "--steps", "3", "--wandb", "offline", "--trackers", "wandb,tensorboard"), work)
    pieces, events = run_ids(folder), read_rows(folder / "events.jsonl")
    said = run(train("twice", "--steps", "3", "--wandb", "offline"), work).stdout
    assert "finished already, after 3 steps" in said
    assert "W&B" not in said
    assert run_ids(folder) == pieces
    assert read_rows(folder / "events.jsonl") == events
    # Killed after its last checkpoint, before it was marked as finished.
    (folder / "events.jsonl").write_text(json.dumps(events[0]) + "\n")
    run(train("twice", "--steps", "3", "--wandb", "off"), work)
    assert [event["what"] for event in read_rows(folder / "events.jsonl")] == ["started", "resumed", "finished"]


def test_online_without_a_key_is_refused_before_any_work(work: Path, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "WANDB_API_KEY": ""}
    command = job("train", ["-f", "tiny", "--name", "keyless", "--steps", "3", *TINY_NET, "--wandb", "online"], ranks=2)
    done = run(command, work, check=False, **home)
    assert done.stderr.count("--wandb online: no W&B key for") == 1
    assert not (work / "runs" / "keyless").exists()
    run(train("keyed", "--steps", "3", "--wandb", "off"), work)
    done = run(job("infer", ["-m", "keyed", "-f", "tiny", "--wandb", "online"]), work, check=False, **home)
    assert done.returncode == 2
    assert "--wandb online: no W&B key for" in done.stderr
    assert not (work / "runs" / "keyed" / "predictions").exists()


def test_the_log_has_a_line_per_epoch_even_if_scores_are_rarer(work: Path) -> None:
    said = run(train("seldom", "-e", "3", "--validate-every", "1000", "--wandb", "off"), work).stdout
    assert [line.split("  ")[0] for line in said.splitlines() if line.startswith("epoch")] == [
        "epoch 1",
        "epoch 2",
        "epoch 3",
    ]


def test_with_averaged_weights_both_scores_are_logged(work: Path) -> None:
    settings = ["--optim.ema-decay", "0.9", "--optim.lr", "0.1", "--validate-every", "3"]
    run(train("averaged", "--steps", "6", "--wandb", "off", *settings), work)
    rows = [row for row in read_rows(work / "runs" / "averaged" / "metrics.jsonl") if row["kind"] == "val"]
    assert [row["loss"] != row["loss_without_ema"] for row in rows] == [True, True]
    assert all(0 <= row["mean_iou_without_ema"] <= 1 for row in rows)


def test_shards_training_and_inference_of_a_pipeline_share_a_group(tmp_path: Path) -> None:
    config = {
        "name": "chain",
        "processes": 1,
        "make_shards": {"synthetic": {"train": 6, "test": 2}, "patches": {"size": 32, "per_image": 4}},
        "train": {"preset": "fast", "steps": 4, "model": {"width": 4, "depth": 2}},
        "tracking": {"wandb": "offline", "tags": ["demo"], "project": "cells"},
    }
    (tmp_path / "chain.json").write_text(json.dumps(config))
    run(job("pipeline", ["--config", "chain.json"]), tmp_path)
    found = {}
    for piece in tmp_path.glob("**/offline-run-*"):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(piece)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        start = next(record["run"] for record in map(json.loads, told.splitlines()) if record["type"] == "run")
        found[start["job_type"]] = (start["project"], start["run_group"], start["tags"])
        if start["job_type"] == "make-shards":
            assert "shards/train_patches" in told
            assert "figures/shard set chain" in told
    assert found == dict.fromkeys(("make-shards", "train", "infer"), ("cells", "chain", ["demo"]))
