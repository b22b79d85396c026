"""The docs as a site, and the code walkthroughs on the architecture page."""

import importlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import segdist
from tests.support.programs import ROOT, environment

ARCHITECTURE = ROOT / "docs" / "architecture.md"


def build(config: Path, out: Path) -> subprocess.CompletedProcess[str]:
    # Without --quiet, since --strict ignores warnings that aren't shown.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(out)]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)


class Ids(HTMLParser):
    """Collects the ids of a page's headings."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found |= {value for name, value in attributes if name == "id" and value}


@pytest.mark.slow
def test_the_site_has_every_page_and_the_reference_of_the_public_api(tmp_path: Path) -> None:
    done = build(ROOT / "mkdocs.yml", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in (ROOT / "docs").glob("*.md"):
        assert (tmp_path / ("" if page.stem == "index" else page.stem) / "index.html").is_file(), page
    ids = Ids()
    ids.feed((tmp_path / "api" / "index.html").read_text())
    public = {getattr(segdist, name) for name in segdist.__all__ if name != "__version__"}
    assert {f"{each.__module__}.{each.__name__}" for each in public} <= ids.found
    assert {"segdist.training.config.TrainConfig.batch_size", "shards.build.config.PatchesConfig.size"} <= ids.found


@pytest.mark.slow
def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("[gone](gone.md)")
    text = (ROOT / "mkdocs.yml").read_text()
    nav = re.sub(r"^nav:\n(?:  .*\n)+", "", text, flags=re.MULTILINE)
    (tmp_path / "mkdocs.yml").write_text(nav)
    assert build(tmp_path / "mkdocs.yml", tmp_path / "site").returncode != 0


def test_files_and_names_in_the_walkthroughs_exist() -> None:
    walks = ARCHITECTURE.read_text().partition("## Three walks")[2].partition("\n## ")[0]
    files = re.findall(r"`((?:segdist|shards|slurm|jobs)/[\w/]+\.py)`", walks)
    assert len(files) > 25
    assert not [file for file in files if not (ROOT / file).is_file()]
    folder = Path()
    for item in re.findall(r"`([\w/]+\.py)`", walks):
        folder = Path(item).parent if "/" in item else folder
        assert (ROOT / folder / Path(item).name).is_file(), f"{item}, in {folder}"
    named = re.findall(r"`((?:segdist|slurm)/[\w/]+)\.py`, `(\w+)`", walks)
    assert len(named) > 5
    for module, name in named:
        source = (ROOT / f"{module}.py").read_text()
        assert re.search(rf"^ *(def|class) {name}\b", source, re.MULTILINE), f"{module}: {name}"
    assert hasattr(importlib.import_module("segdist.training.trainer").Trainer, "_resume")
