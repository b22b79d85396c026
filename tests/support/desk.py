"""A folder for running the commands of a page: it looks like a checkout, with smaller settings.

Wrappers around `segdist` and `torchrun` come first on the PATH and add options, so that the page's commands run as
written, even inside loops and other programs.
"""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.programs import ROOT, environment

SMALLER = {
    "make-shards": "--patches.size 32 --patches.per-image 4 --processes 1",
    "pipeline": "--patches.size 32 --patches.per-image 4 --minutes 0.1 --train '"
    + '{"model": {"width": 4, "depth": 2}}'
    + "'",
    "cross-validate": "--folds 2 --processes 1 --train "
    + '\'{"steps": 4, "model": {"width": 4, "depth": 2}}\' --minutes 0 --tracking \'{"wandb": "off"}\'',
    "bench": "--processes 1",
    "train": '--steps "$(cat "$DESK/steps")" --model.width 4 --model.depth 2',
}
"""Additional options for each job; each training takes one step more than the previous one, so that a resumed run has
something to do."""

DEMO = """name = "demo"
processes = 2

[make_shards]
synthetic = { train = 6, test = 2 }
patches = { size = 32, per_image = 4 }

[train]
preset = "fast"
steps = 6
model = { width = 4, depth = 2 }
"""
"""Replaces jobs/demo.toml."""

TOOLS = Path(sys.executable).parent


@dataclass
class Desk:
    """A folder in which to run a page's commands.

    Args:
        folder: created here; commands run in it.
        environ: additional environment variables.
    """

    folder: Path
    environ: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("docs", "tests", "slurm", "setup.cfg", "constraints.txt"):
            (self.folder / name).symlink_to(ROOT / name)
        (self.folder / ".venv").symlink_to(sys.prefix)
        (self.folder / "jobs").mkdir()
        for file in (ROOT / "jobs").iterdir():
            (self.folder / "jobs" / file.name).symlink_to(file)
        (self.folder / "jobs" / "demo.toml").unlink()
        (self.folder / "jobs" / "demo.toml").write_text(DEMO)
        (self.folder / "steps").write_text("4\n")
        self._wrap("segdist", {f'" {job} "*': options for job, options in SMALLER.items()})
        self._wrap("torchrun", {'*" jobs/train.py "*': SMALLER["train"]})
        usual = {"PATH": f"{self.folder}/bin:{TOOLS}:{os.environ['PATH']}", "HOME": str(self.folder)}
        self.environ = usual | {"WANDB_MODE": "offline"} | self.environ

    def run(self, command: str, code: int = 0, **environ: str) -> str:
        """Run lines in bash; return standard output and error.

        Raises:
            AssertionError: the exit code is not `code`.
        """
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.folder,
            env=environment(**(self.environ | environ)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == code, f"{command}\nexit code {done.returncode}\n{done.stdout}"
        return done.stdout

    def images(self, folder: str, names: list[str], channels: int = 1) -> None:
        """Write noisy images of 70 x 90 pixels with a bright square each."""
        for name in names:
            noise = np.random.default_rng(len(name)).integers(0, 50, (70, 90, channels))
            image = np.where(square(name)[..., None], 180, 60) + noise
            save(self.folder / folder / name, image if channels == 3 else image[..., 0])

    def masks(self, folder: str, names: dict[str, str], values: tuple[int, ...]) -> None:
        """Write masks of `images`; `names` maps image to mask names, `values` are for background and square stripes."""
        for image, name in names.items():
            stripes = np.array(values[1:])[np.arange(90) % (len(values) - 1)]
            save(self.folder / folder / name, np.where(square(image), stripes, values[0]))

    def _wrap(self, program: str, added: dict[str, str]) -> None:
        """Put a wrapper before the real `program` that adds options if its arguments match a pattern."""
        lines = ["#!/bin/bash", f'DESK="{self.folder}"', 'case " $* " in']
        for pattern, options in added.items():
            count = 'echo $(($(cat "$DESK/steps") + 1)) >"$DESK/steps"'
            lines.append(f'{pattern}) {count}; exec {TOOLS / program} "$@" {options} ;;')
        lines += [f'*) exec {TOOLS / program} "$@" ;;', "esac"]
        file = self.folder / "bin" / program
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(lines) + "\n")
        file.chmod(0o755)


def square(name: str) -> np.ndarray:
    """Mask of an image's square, bool (70, 90)."""
    top, left = np.random.default_rng(sum(map(ord, name))).integers(0, 40, 2)
    inside = np.zeros((70, 90), bool)
    inside[top : top + 30, left : left + 30] = True
    return inside


def save(path: Path, array: np.ndarray) -> None:
    """Save as an 8-bit image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)
