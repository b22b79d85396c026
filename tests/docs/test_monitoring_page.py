"""The commands in docs/monitoring.md run in order, against a local W&B server."""

import contextlib
import json
import os
import pty
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.desk import Desk
from tests.support.pages import run_page
from tests.support.programs import ROOT, environment
from tests.support.run_example import write_run
from tests.support.wandb_server import SWEEP, WandbServer, wandb_server


@pytest.fixture
def server() -> Iterator[WandbServer]:
    """A local W&B server."""
    with wandb_server() as server:
        yield server


@pytest.mark.slow
def test_the_commands_of_the_page_run(tmp_path: Path, server: WandbServer) -> None:
    desk = Desk(tmp_path / "desk", {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "x" * 40})
    desk.run("segdist make-shards -f synthetic --synthetic.train 10 --synthetic.test 2")
    desk.run("segdist train -f synthetic --wandb off\nsegdist infer -m synthetic -f synthetic --wandb off")
    for name in ("first", "second"):
        write_run(desk.folder / "runs" / name)
    sweep = yaml.safe_load((ROOT / "docs" / "examples" / "sweep.yaml").read_text())
    settings = {
        name: {"value": choice["values"][0] if "values" in choice else choice["min"]}
        for name, choice in sweep["parameters"].items()
    }
    server.trial = {"type": "run", "run_id": "trial1", "program": "segdist", "args": settings}

    def run(text: str) -> None:
        if text.startswith("wandb leet runs"):
            assert "\x1b" in press_q(desk, text)
        elif text.startswith("tensorboard"):
            assert "runs/synthetic/tensorboard" in runs_in_tensorboard(desk, text)
        else:
            online = {"WANDB_MODE": "online"} if text.startswith("wandb") else {}
            desk.run(text.replace("SWEEP_ID", SWEEP), **online)

    run_page("monitoring.md", run)
    # Offline and online starts in one folder give one run with each step once, even after `wandb sync`.
    state = json.loads((desk.folder / "runs" / "synthetic" / "wandb" / "state.json").read_text())
    rows = [row["trainer/step"] for row in server.runs[state["run_id"]].history]
    assert rows
    assert sorted(set(rows)) == sorted(rows)
    trial = server.runs["trial1"]
    assert trial.project == "segdist"
    assert trial.config["config"]["value"]["optim"]["lr"] == settings["optim.lr"]["value"]
    assert any("val/mean_iou" in row for row in trial.history)
    assert (desk.folder / "runs" / "sweep-trial1" / "best.safetensors").is_file()


def press_q(desk: Desk, text: str) -> str:
    """Run a full-screen program and quit it as a user would; return what it drew."""
    master, slave = pty.openpty()
    environ = environment(**desk.environ, TERM="xterm-256color", COLUMNS="120", LINES="40")
    process = subprocess.Popen(
        ["bash", "-c", text], cwd=desk.folder, env=environ, stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    drawn = b""
    asked = 0.0
    end = time.monotonic() + 60
    os.set_blocking(master, False)
    while process.poll() is None:
        assert time.monotonic() < end, drawn
        with contextlib.suppress(OSError):
            drawn += os.read(master, 65536)
        if drawn and time.monotonic() - asked > 1:
            os.write(master, b"q")
            asked = time.monotonic()
        time.sleep(0.05)
    os.close(master)
    assert process.returncode == 0, drawn
    return drawn.decode(errors="replace")


def runs_in_tensorboard(desk: Desk, text: str) -> list[str]:
    """Start TensorBoard on a free port, get its list of runs, and stop it."""
    process = subprocess.Popen(
        ["bash", "-c", f"exec {text} --port 0"],
        cwd=desk.folder,
        env=environment(**desk.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = next(match[0] for line in process.stdout if (match := re.search(r"http://\S+", line)))
        end = time.monotonic() + 60
        found: list[str] = []
        while not found and time.monotonic() < end:  # it reads the files in the background
            with urllib.request.urlopen(f"{address.rstrip('/')}/data/runs", timeout=30) as answer:
                found = [f"runs/{run}" for run in json.load(answer)]
            time.sleep(0.2)
        return found
    finally:
        process.terminate()
        process.wait(timeout=30)
