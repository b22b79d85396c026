"""Every command that the README and the docs show runs, in its order, on small data.

Where that can't be, `NOT_RUN` says why. Code spans in running text are mentions: their jobs and options must exist.
"""

import contextlib
import io
import json
import os
import pty
import re
import shlex
import subprocess
import time
import tomllib
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import cli
from segdist.runs.record import read_rows
from tests.support.desk import Desk
from tests.support.pages import INFERENCE_COMMANDS, PAGES, commands, inline_code
from tests.support.programs import ROOT, environment
from tests.support.run_example import write_run
from tests.support.wandb_server import SWEEP, WandbServer, wandb_server

BENCHMARK = "takes many minutes and an idle machine"
THESE_TESTS = "is what runs this"
THAT_CLUSTER = "needs the cluster of the example; tests/slurm/test_docs.py plans it with --dry-run"
MINI_CLUSTER = "tests/docs/test_cluster_page.py runs it, where there is a Slurm"
NOT_RUN = {
    "README.md": {
        "bash tests/run.sh": THESE_TESTS,
        "torchrun --nnodes=2": "needs two machines",
    },
    "CONTRIBUTING.md": {
        "python -m tests.campaign": "takes hours; tests/test_campaign.py does two trials of each",
        "bash tests/lowest_versions.sh": "installs another torch of several GB",
        "bash tests/run.sh": THESE_TESTS,
        "python -m tests.benchmarks.": BENCHMARK,
        "python -m tests.support.rooms": "tests/test_rooms.py runs it",
        "python -m tests.fuzz": "a long run by hand; tests/fuzz/test_fuzz.py does a short one",
        "mkdocs serve": "runs until it is stopped; tests/docs/test_site.py builds the site",
        "python docs/make_pictures.py": "tests/docs/test_examples_and_pictures.py runs it, on a small run",
    },
    "security.md": {"segdist infer --model their.safetensors": "needs a stranger's model; test_trust.py has one"},
    "cluster.md": {
        "segdist submit pipeline --profile mycluster.toml": THAT_CLUSTER,
        "segdist submit make-shards --profile mycluster.toml": THAT_CLUSTER,
        "segdist submit train --profile mycluster.toml": THAT_CLUSTER,
        "segdist submit infer --profile mycluster.toml": THAT_CLUSTER,
        "apt-get install": "tests/system_packages.sh installs the same packages",
        'eval "$(slurm/mini_cluster.sh start)"': MINI_CLUSTER,
        "segdist submit pipeline --profile mini": MINI_CLUSTER,
        "segdist queue demo": MINI_CLUSTER,
        "segdist status demo --follow": MINI_CLUSTER,
        "tail -F runs/demo/slurm/": MINI_CLUSTER,
        "slurm/mini_cluster.sh": MINI_CLUSTER,
    },
    "inference.md": {
        "segdist ": "tests/docs/test_inference_docs.py runs it",
        "torchrun ": "tests/docs/test_inference_docs.py runs it",
        "python -m tests.benchmarks.inference": BENCHMARK,
    },
    "cross-validation.md": {
        "segdist submit cross-validate": "tests/slurm/test_folds.py runs it, where there is a Slurm"
    },
    "monitoring.md": {
        "pip install -e '.[tensorboard]'": "needs the network; tests/run.sh installs this extra",
    },
}
"""By page and by how the command begins."""


def reason_not_to_run(page: Path, text: str) -> str | None:
    """Why a command isn't run here; None: it is."""
    reasons = NOT_RUN.get(page.name, {})
    return next((reason for beginning, reason in reasons.items() if text.startswith(beginning)), None)


def run_page(name: str, run: Callable[[str], None]) -> None:
    """Run what the page of that name shows, in its order."""
    page = next(page for page in PAGES if page.name == name)
    for command in commands(page):
        if reason_not_to_run(page, command.text) is None:
            run(command.text)


@pytest.mark.slow
def test_readme(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "desk")
    names = [f"{number} of.many.png" for number in range(8)]
    desk.images("cells/images", names, channels=3)
    desk.images("cells/new", ["one.png", "new 2.v1.png"], channels=3)
    desk.masks("cells/masks", {name: name for name in names}, (0, 1))
    run_page("README.md", desk.run)
    assert (desk.folder / "cells" / "segmented" / "masks" / "one.png").is_file()
    assert (desk.folder / "comparison.html").is_file()


@pytest.mark.slow
def test_the_python_of_the_readme(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "desk")
    names = [f"{number}.png" for number in range(8)]
    desk.images("cells/images", names, channels=3)
    desk.images("cells/new", ["one.png"], channels=3)
    desk.masks("cells/masks", {name: name for name in names}, (0, 1))
    pieces = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    first, *others = [piece.replace("minutes=20", "steps=2, model={'width': 4, 'depth': 2}") for piece in pieces]
    assert re.fullmatch(r"mean IoU of the images held out: 0\.\d{3}\n", desk.run(f"python -c {shlex.quote(first)}"))
    assert (desk.folder / "cells" / "segmented" / "masks" / "one.png").is_file()
    for piece in others:
        desk.run(f"python -c {shlex.quote(piece)}")


@pytest.mark.slow
def test_own_data(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "desk")
    photos = [f"{number}.png" for number in range(10)]
    desk.images("photos", photos)
    desk.masks("labels", {name: name for name in photos}, (0, 255))
    rats = [f"sub-rat{rat}_sample-data{sample}_SEM" for sample, rat in enumerate((1, 2, 3, 3, 3, 4, 5, 6, 7, 8))]
    desk.images("axon_sem/images", [f"{rat}.png" for rat in rats])
    masks = {f"{rat}.png": f"{rat}_seg-axonmyelin-manual.png" for rat in rats}
    desk.masks("axon_sem/masks", masks, (0, 127, 255))
    # The public set has nine stray pixels in one mask.
    desk.masks("axon_sem/masks", dict([list(masks.items())[1]]), (0, 127, 255, 130))
    told = "--images.folder photos --masks.folder labels --masks.classes background=0 cell=255"

    def run(text: str) -> None:
        text = text.replace("…", told)
        if "--task 0/8" in text:
            text = "\n".join(text.replace("0/8", f"{task}/8") for task in range(8))
        if "-f axons" in text and "--masks.unknown ignore" not in text:
            assert "values in the masks that belong to no class" in desk.run(text, code=2)
        else:
            desk.run(text)

    run_page("data.md", run)
    assert (desk.folder / "data" / "axons" / "contact_sheet.png").is_file()
    assert (desk.folder / "data" / "big" / "manifest.json").is_file()


@pytest.mark.slow
def test_exact_training(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "desk")
    desk.run("segdist make-shards -f cells --synthetic.train 10 --synthetic.test 2")

    def run(text: str) -> None:
        # The second training goes a step further here; a constant rate doesn't depend on the length.
        text = text.replace("--exact", "--exact --optim.schedule constant").replace("--step 1200", "--step 6")
        said = desk.run(text)
        if "replay" in text:
            assert "recorded steps: the same weights, bit by bit" in said

    run_page("exact.md", run)


@pytest.mark.slow
def test_training(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "desk")
    desk.run("segdist make-shards -f cells --synthetic.train 10 --synthetic.test 2")
    run_page("training.md", desk.run)
    assert read_rows(desk.folder / "runs" / "cells" / "metrics.jsonl")


@pytest.mark.slow
def test_cross_validation(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "desk")
    desk.run("segdist make-shards -f cells --synthetic.train 6 --synthetic.test 2")
    run_page("cross-validation.md", desk.run)
    promised = re.findall(r"^\| `(.*?)` \|", (ROOT / "docs" / "cross-validation.md").read_text(), re.MULTILINE)
    for file in ", ".join(promised).replace("`", "").split(", "):
        place = desk.folder / "runs" / "cells-cv"
        assert (place / file).exists() or (place / "out-of-fold" / file).exists(), file


@pytest.mark.slow
def test_frontier_of_inference(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "desk")
    desk.run("segdist make-shards -f synthetic --synthetic.train 10 --synthetic.test 1 --synthetic.height 120")
    desk.run("segdist train -f synthetic --wandb off")
    run_page("inference.md", desk.run)
    assert (desk.folder / "frontier.png").is_file()
    shown = [command.text for command in commands(ROOT / "docs" / "inference.md")]
    assert {text for text in shown if text.startswith(("segdist", "torchrun"))} == set(INFERENCE_COMMANDS)


@pytest.fixture
def server() -> Any:
    """A W&B server of ours."""
    with wandb_server() as server:
        yield server


@pytest.mark.slow
def test_monitoring(tmp_path: Path, server: WandbServer) -> None:
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
    # Offline and online starts of the same folder: one run, each step once, also after `wandb sync`.
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
    """Run a program that takes the whole terminal, and leave it as a person would; what it drew."""
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
    """Start TensorBoard at a free port, ask it for its runs, stop it."""
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


PAGES_RUN = {"README.md", "data.md", "training.md", "exact.md", "inference.md", "cross-validation.md", "monitoring.md"}
"""The pages with a test above."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_command_of_a_page_is_forgotten(page: Path) -> None:
    shown = [command.text for command in commands(page)]
    left = [text for text in shown if reason_not_to_run(page, text) is None]
    assert page.name in PAGES_RUN or not left, f"{page.name} has commands that no test runs: {left}"
    for beginning in NOT_RUN.get(page.name, {}):
        assert any(text.startswith(beginning) for text in shown), f"{page.name} has no command {beginning!r} any more"


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """The options of every job, as `--help` shows them."""
    found = {}
    for job in cli.JOBS:
        kinds: list[list[str]] = [[]]
        if job == "submit":
            kinds = [["make-shards"], ["train"], ["infer"], ["cross-validate"], ["pipeline"], ["report"]]
        if job == "shards":
            kinds = [["inspect"], ["verify"]]
        text = io.StringIO()
        for kind in kinds:
            with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
                cli.main([job, *kind, "--help"])
        found[job] = set(re.findall(r"(?<![\w-])--?[A-Za-z][\w.-]*", text.getvalue()))
    return found


OTHER_TOOLS = {
    *("--standalone", "--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint", "--max-restarts"),
    *("--ntasks-per-node", "--cpus-per-task", "--kill-on-bad-exit", "--no-install-recommends", "--quick", "--fresh"),
    *("--partition", "--gpus-per-node", "--time", "--pty", "--container-image", "--container-mounts", "--nv"),
    *("--rounds", "--constraint", "--privileged", "--resolve", "--part", "--trials"),
}
"""Options of torchrun, Slurm and other programs that the pages mention."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_jobs_and_options_that_a_page_mentions_exist(page: Path, options: dict[str, set[str]]) -> None:
    everything = set().union(*options.values()) | OTHER_TOOLS
    for span in inline_code(page):
        words = span.split()
        if words[0] == "segdist" and len(words) > 1:
            assert words[1] in (*cli.JOBS, "JOB", "[onnx]"), span
            given = {word.partition("=")[0] for word in words[2:] if word.startswith("-")}
            assert given <= options.get(words[1], set()) | {"--help", "--dry-run"}, span
        for word in re.findall(r"(?<![\w-])--[a-z][\w.-]*", span):
            assert word.rstrip(".") in everything, f"{page.name}: {span}"


def test_settings_files_of_the_docs_are_accepted(tmp_path: Path) -> None:
    """The cluster's profile has its own test."""
    from jobs.command_line import parse
    from segdist.training.config import TrainConfig

    found = re.findall(r"^```toml\n(.*?)^```", (ROOT / "docs" / "training.md").read_text(), re.MULTILINE | re.DOTALL)
    assert found
    for number, text in enumerate(found):
        (tmp_path / f"{number}.toml").write_text(text)
        config = parse(TrainConfig, ["--config", str(tmp_path / f"{number}.toml")], "train", "").job
        assert config.model.factory == tomllib.loads(text)["model"]["factory"]


def test_the_pages_that_the_readme_and_the_docs_name_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} names {target}"
