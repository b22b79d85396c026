"""Every command of the README runs, in its order, on a smaller set.

Not run: `bash tests/run.sh`, which is what runs this; the line for several nodes, which needs two machines; `wandb
sync`, which needs a key and the network.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import ROOT, environment, run

pytestmark = pytest.mark.slow

DEMO = f"readme-{os.getpid()}"
SMALL_NET = ["--steps", "6", "--model.width", "4", "--model.depth", "2"]
SMALLER = {
    "make-shards": ["--patches.size", "32", "--patches.per-image", "4"],
    "train": SMALL_NET,
    "jobs/train.py": SMALL_NET,
    "jobs/demo.sh": [
        *("--name", DEMO),
        *("--make-shards", '{"synthetic": {"train": 6, "test": 2}, "patches": {"size": 32, "per_image": 4}}'),
        *("--train", '{"preset": "fast", "steps": 6, "model": {"width": 4, "depth": 2}}'),
    ],
}
NOT_RUN = ["bash tests/run.sh"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.M | re.S)


def commands() -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines() if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that looks like the checkout, with a few images of cells in it; what the demo made is removed."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "jobs").symlink_to(ROOT / "jobs")
    generator = np.random.default_rng(0)
    for part, count in (("images", 8), ("new", 2)):
        (folder / "cells" / part).mkdir(parents=True)
        (folder / "cells" / "masks").mkdir(exist_ok=True)
        for number in range(count):
            mask = np.zeros((70, 90), np.uint8)
            top, left = generator.integers(0, 40, 2)
            mask[top : top + 30, left : left + 30] = 1
            image = np.where(mask[..., None], 60, 180) + generator.integers(0, 50, (70, 90, 3))
            name = "one.png" if part == "new" and number == 0 else f"{part} {number}.v1.png"
            Image.fromarray(image.astype(np.uint8)).save(folder / "cells" / part / name)
            if part == "images":
                Image.fromarray(mask).save(folder / "cells" / "masks" / name)
    yield folder
    for name in ("data", "runs"):
        shutil.rmtree(ROOT / name / DEMO, ignore_errors=True)


def test_every_command_of_the_readme_runs(checkout: Path) -> None:
    # What `source .venv/bin/activate` gives.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ran = []
    for line in commands():
        if line in NOT_RUN:
            continue
        words = shlex.split(line)
        extra = [word for key, more in SMALLER.items() if key in words for word in more]
        script = shlex.join([*words, *extra])
        # The demo goes to its own checkout, for the environment there.
        run(["bash", "-c", script], ROOT if "jobs/demo.sh" in words else checkout, PATH=path)
        ran.append(words[1] if words[0] == "segdist" else words[0])
    assert set(ran) >= {"bash", "make-shards", "train", "infer", "torchrun", "status", "report"}
    assert (checkout / "cells" / "segmented" / "masks" / "one.png").is_file()
    assert (checkout / "comparison.html").is_file()
    for block in blocks("python"):
        subprocess.run([sys.executable, "-c", block], cwd=checkout, env=environment(), check=True)


def test_the_pages_that_the_readme_and_the_docs_name_exist() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} names {target}"
