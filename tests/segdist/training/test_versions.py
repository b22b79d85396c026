"""A run of an earlier version resumes as that version would have; one of a newer version is refused.

`fixtures/run_without_versions.tar.xz` holds a 10-step run stopped by a signal after step 5, its shard set, and the end
of the same run without a stop, all written by the last program without format versions (commit 62b2f21).
"""

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from segdist.core.formats import RUN_VERSION
from segdist.runs.record import read_rows, read_run
from segdist.training.checkpoint import CHECKPOINT_VERSION
from tests.support.programs import job, run
from tests.support.states import metrics

FIXTURE = Path(__file__).parent / "fixtures" / "run_without_versions.tar.xz"
SETTINGS = [
    *("-f", "old", "--name", "old", "-b", "8", "--steps", "10", "--log-every", "2", "--validate-every", "3"),
    *("--model.width", "2", "--model.depth", "1", "--optim.optimizer", "adamw", "--optim.ema-decay", "0.9"),
    *("--seed", "3", "--augment.rotate90", "--device", "cpu", "--threads", "1", "--wandb", "off", "--quiet"),
]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The folder of the old run."""
    with tarfile.open(FIXTURE) as archive:
        # The argument `filter` is missing before Python 3.11.4, where this attribute does nothing.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(tmp_path)
    return tmp_path / "runs" / "old"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.slow
def test_a_run_without_versions_resumes_bit_for_bit(old: Path) -> None:
    description = json.loads((old / "config.json").read_text())
    assert "format_version" not in description
    assert description["config"]["model"]["factory"] == "segdist.unet:UNet"
    run(job("train", SETTINGS), old.parent.parent)
    assert [row["what"] for row in read_rows(old / "events.jsonl")] == ["started", "stopped", "resumed", "finished"]
    finished = old.parent.parent / "finished"
    found, expected = (load_file(folder / "last.safetensors") for folder in (old, finished))
    rows, expected_rows = metrics(old), metrics(finished)
    assert [(row["kind"], row["step"]) for row in rows] == [(row["kind"], row["step"]) for row in expected_rows]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)
    assert json.loads((old / "config.json").read_text())["format_version"] == RUN_VERSION
    assert json.loads((old / "summary.json").read_text())["format_version"] == RUN_VERSION
    newest = torch.load(max((old / "checkpoints").glob("step-*.pt")), weights_only=True)
    assert newest["format_version"] == CHECKPOINT_VERSION
    assert read_run(old).classes == ["background", "line", "ellipse"]
    # Bits depend on the processor. If a fresh run has the old program's, so must the resumed one.
    shutil.rmtree(old / "checkpoints")
    for name in ("metrics.jsonl", "events.jsonl", "summary.json", "last.safetensors", "best.safetensors"):
        (old / name).unlink()
    run(job("train", SETTINGS), old.parent.parent)
    from_start = load_file(old / "last.safetensors")
    torch.testing.assert_close(from_start, expected, rtol=1e-3, atol=1e-5)
    if all(torch.equal(from_start[name], value) for name, value in expected.items()):
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        assert rows == expected_rows


@pytest.mark.slow
def test_settings_that_differ_from_the_old_run_are_still_refused(old: Path) -> None:
    done = run([*job("train", SETTINGS), "--model.norm", "group"], old.parent.parent, check=False)
    assert done.returncode == 2
    assert "model.norm: was 'batch', now 'group'" in done.stderr
    assert "factory" not in done.stderr


@pytest.mark.slow
def test_a_setting_unknown_to_the_old_run_means_its_old_behavior(old: Path) -> None:
    description = json.loads((old / "config.json").read_text())
    del description["config"]["augment"]["blur"]
    edit(old / "config.json", config=description["config"])
    done = run([*job("train", SETTINGS), "--augment.blur", "1"], old.parent.parent, check=False)
    assert "augment.blur: was 0.0, now 1.0" in done.stderr
    run(job("train", SETTINGS), old.parent.parent)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "summary.json"])
def test_a_run_of_a_newer_program_is_refused(old: Path, name: str) -> None:
    edit(old / name, format_version=RUN_VERSION + 1)
    commands = [[*job("status", [str(old)])]]
    if name == "config.json":
        commands.append(job("train", SETTINGS))
    for command in commands:
        done = run(command, old.parent.parent, check=False)
        assert done.returncode == 2
        assert f"{name}: format version {RUN_VERSION + 1}, written by a newer segdist" in done.stderr


@pytest.mark.slow
def test_a_checkpoint_of_a_newer_program_is_refused_not_treated_as_damaged(old: Path) -> None:
    path = old / "checkpoints" / "step-00000005.pt"
    torch.save(torch.load(path, weights_only=True) | {"format_version": CHECKPOINT_VERSION + 1}, path)
    for ranks in (1, 2):
        done = run(job("train", SETTINGS, ranks), old.parent.parent, check=False)
        assert f"{path.relative_to(old.parent.parent)}: format version {CHECKPOINT_VERSION + 1}" in done.stderr
        assert "gloo" not in done.stderr  # the other rank gets the error too, instead of losing its peer
    assert path.exists()
