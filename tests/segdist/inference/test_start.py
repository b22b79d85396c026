"""What `segdist.predict` imports, and what inference needs from the system."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.inference_parts import checksums, run, write_images, write_model

UNWANTED = (
    "segdist.training",
    "segdist.tracking",
    "segdist.runs",
    "jobs",
    "slurm",
    "wandb",
    "submitit",
    "matplotlib",
    "pydantic",
    "rich",
    "tifffile",
    "webdataset",
)


def test_predict_imports_neither_the_trainer_nor_a_tracker() -> None:
    code = "import sys; from segdist import predict; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "segdist.inference.tiler" in loaded
    assert [name for name in loaded if name.startswith(tuple(f"{unwanted}." for unwanted in UNWANTED))] == []
    assert set(loaded) & set(UNWANTED) == set()


@pytest.mark.slow
def test_a_single_process_job_needs_nothing_specific_to_linux(tmp_path: Path) -> None:
    model, images = write_model(tmp_path / "run"), write_images(tmp_path / "images", {"odd": (61, 83)})
    arguments = ["-m", str(model), "-i", str(images), "--quiet", "--device", "cpu", "--wandb", "off"]
    assert run([*arguments, "-o", str(tmp_path / "here")]) == 0
    only_linux = ["sched_getaffinity", "fdatasync", "posix_fadvise", "posix_fallocate", "pidfd_open", "memfd_create"]
    elsewhere = f"import os; [delattr(os, name) for name in {only_linux} if hasattr(os, name)]; "
    # Reading /proc fails as on a system without it.
    elsewhere += "import builtins, io; opened = io.open; io.open = builtins.open = lambda file, *a, **k: "
    elsewhere += "opened('/nowhere' + str(file) if str(file).startswith('/proc') else file, *a, **k)"
    assert run([*arguments, "-o", str(tmp_path / "elsewhere")], prelude=elsewhere) == 0
    found = [checksums(tmp_path / out / "masks") for out in ("here", "elsewhere")]
    assert found[0] == found[1] != {}
