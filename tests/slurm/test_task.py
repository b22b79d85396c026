"""What is sent to the nodes: configs and import paths, a few hundred bytes, created without heavy libraries."""

import pickletools
import subprocess
import sys
from pathlib import Path

import pytest
from submitit.core.utils import DelayedSubmission

from segdist.core.code_version import current_version
from slurm.task import Task

HEAVY = ("torch", "wandb", "webdataset", "matplotlib")


def pickled(folder: Path, **options: object) -> bytes:
    """A training task in the file that submitit writes for the nodes."""
    arguments = ("train", "-f", "cells", "--preset", "fast", "--name", "first")
    task = Task(arguments, str(folder), current_version(), progress=("runs/first/checkpoints/step-*.pt",), **options)  # type: ignore[arg-type]
    DelayedSubmission(task).dump(folder / "task.pkl")
    return (folder / "task.pkl").read_bytes()


def test_a_pickle_is_small_and_names_only_our_classes_and_submitits(tmp_path: Path) -> None:
    content = pickled(tmp_path, stage="/data/cells", stage_to="$TMPDIR", torchrun=8)
    assert len(content) < 2000
    opcodes = [(opcode.name, argument) for opcode, argument, _ in pickletools.genops(content)]
    # A class is named by the two strings before its opcode. A closure or a script's function would be pickled by value,
    # with cloudpickle's own functions.
    texts = [argument for name, argument in opcodes if "UNICODE" in name]
    assert "slurm.task" in texts
    assert not any(isinstance(text, str) and "cloudpickle" in text for text in texts)
    assert not any(name == "GLOBAL" for name, _ in opcodes)
    assert sum(name == "STACK_GLOBAL" for name, _ in opcodes) <= 4


def test_a_pickle_is_loaded_without_heavy_libraries(tmp_path: Path) -> None:
    pickled(tmp_path)
    script = (
        "import pickle, sys; task = pickle.load(open(sys.argv[1], 'rb')).function; "
        f"print(task.arguments[0], [name for name in {HEAVY} if name in sys.modules])"
    )
    words = [sys.executable, "-c", script, str(tmp_path / "task.pkl")]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout == "train []\n"


@pytest.mark.parametrize(
    "words",
    [
        "make-shards --profile mini --tasks 4 --dry-run -- -f cells",
        "train --profile mini --dry-run -- -f cells",
        "infer --profile mini --dry-run -- -m cells -f cells",
        "pipeline --profile mini --dry-run --name demo",
    ],
)
def test_a_submission_imports_no_heavy_library_on_the_login_node(words: str, tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); from jobs import submit; "
        f"submit.main(sys.argv[1:]); print([name for name in {HEAVY} if name in sys.modules])"
    )
    command = [sys.executable, "-c", script, *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.endswith("[]\n")
