"""`--dry-run` leaves no files behind, whatever the command."""

from pathlib import Path

import pytest

from jobs.cli import main
from tests.support.inference_parts import write_images, write_model
from tests.support.sets import tiny_set

pytestmark = pytest.mark.slow

COMMANDS = {
    "make-shards": ("make-shards", "-f", "new"),
    "train": ("train", "-f", "tiny", "--name", "run", "--wandb", "offline"),
    "infer": ("infer", "-m", "runs/model", "-i", "images", "-o", "out"),
    "pipeline": ("pipeline", "new"),
    "pipeline of a set that is there": ("pipeline", "tiny"),
    "pipeline that would start over": ("pipeline", "tiny", "--fresh"),
    "submit make-shards": ("submit", "make-shards", "--profile", "mini", "--dry-run", "--", "-f", "new"),
    "submit train": ("submit", "train", "--profile", "mini", "--dry-run", "--", "-f", "tiny", "--name", "run"),
    "submit infer": (
        "submit",
        "infer",
        "--profile",
        "mini",
        "--dry-run",
        "--",
        "-m",
        "runs/model",
        "-i",
        "images",
        "-o",
        "out",
    ),
    "cross-validate": ("cross-validate", "-f", "tiny", "--folds", "2"),
    "cross-validate that would start over": ("cross-validate", "-f", "tiny", "--folds", "2", "--fresh"),
    "submit cross-validate": ("submit", "cross-validate", "--profile", "mini", "-f", "tiny"),
    "submit pipeline": ("submit", "pipeline", "new", "--profile", "mini"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dry")
    tiny_set(folder / "data")
    write_model(folder / "runs" / "model")
    write_images(folder / "images", {"one": (40, 50)})
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_a_dry_run_changes_no_file(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    command, before = COMMANDS[name], snapshot(place)
    code = main([*command, *([] if "--dry-run" in command else ["--dry-run"])])
    told = capfd.readouterr()
    assert told.out, told.err
    assert snapshot(place) == before
    # A dry run also refuses an existing set with a different recipe.
    assert code == (2 if name == "pipeline of a set that is there" else 0), told.err


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }
