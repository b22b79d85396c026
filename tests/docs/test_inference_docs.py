"""Every command and every line of Python in docs/inference.md works as written."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jobs import cli
from segdist.model.card import ModelCard
from segdist.model.config import ModelConfig
from segdist.model.factory import build_model
from segdist.model.model_file import save_model
from shards.manifest import read_manifest
from tests.support.desk import TOOLS
from tests.support.pages import INFERENCE_COMMANDS, commands, run_page
from tests.support.programs import ROOT, run
from tests.support.sets import tiny_set

PAGE = (ROOT / "docs" / "inference.md").read_text()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/synthetic and runs, as after the README's first steps."""
    desk = tmp_path_factory.mktemp("desk")
    manifest = read_manifest(tiny_set(desk / "data", "synthetic"))
    config = ModelConfig(width=4, depth=2)
    state = build_model(config, manifest.channels, len(manifest.classes)).state_dict()
    card = ModelCard(
        config,
        manifest.classes,
        manifest.channels,
        manifest.dtype,
        manifest.patch,
        manifest.mean,
        manifest.std,
        stride_multiple=4,
    )
    for name in ("synthetic", "one", "two"):
        (desk / "runs" / name).mkdir(parents=True)
        save_model(desk / "runs" / name / "best.safetensors", state, card)
    return desk


@pytest.fixture
def at_desk(desk: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(desk)
    threads = torch.get_num_threads()
    yield desk
    torch.set_num_threads(threads)


def test_the_page_has_commands() -> None:
    assert len(INFERENCE_COMMANDS) >= 7
    shown = [command.text for command in commands(ROOT / "docs" / "inference.md")]
    assert {text for text in shown if text.startswith(("segdist", "torchrun"))} == set(INFERENCE_COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in INFERENCE_COMMANDS if command.startswith("torchrun")])
def test_torchrun_commands_run(at_desk: Path, command: str) -> None:
    # These run first: calibration, later on the page, changes the model and so what the default folder accepts.
    words = shlex.split(command)[1:]
    words[words.index("jobs/infer.py")] = str(ROOT / "jobs" / "infer.py")
    subprocess.run([sys.executable, "-m", "torch.distributed.run", *words], check=True, timeout=300)


@pytest.mark.parametrize("command", [command for command in INFERENCE_COMMANDS if command.startswith("segdist")])
def test_segdist_commands_run(at_desk: Path, command: str) -> None:
    if "export" in command:
        pytest.importorskip("onnxruntime")
    # The order matters: the array's tasks must run before the merge.
    assert cli.main(shlex.split(command)[1:]) == 0


@pytest.mark.slow
def test_the_frontier_is_drawn(at_desk: Path) -> None:
    path = f"{TOOLS}:{os.environ['PATH']}"
    run_page("inference.md", lambda text: run(["bash", "-c", text], at_desk, PATH=path))
    assert (at_desk / "frontier.png").is_file()


def test_python_lines_run(at_desk: Path) -> None:
    source = next(Path("data/synthetic/source/test/images").iterdir())
    Image.open(source).save("image.png")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {"array": np.asarray(Image.open("image.png"))}
    exec(code, names)
    assert names["probabilities"].shape == (3, *names["mask"].shape)
