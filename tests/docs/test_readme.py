"""The README's commands and Python code run in order, on small data; so does the Python code of docs/api.md."""

import re
import shlex
from pathlib import Path

import pytest

from tests.support.desk import Desk
from tests.support.pages import run_page
from tests.support.programs import ROOT

pytestmark = pytest.mark.slow


def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "desk")
    names = [f"{number} of.many.png" for number in range(8)]
    desk.images("cells/images", names, channels=3)
    desk.images("cells/new", ["one.png", "new 2.v1.png"], channels=3)
    desk.masks("cells/masks", {name: name for name in names}, (0, 1))
    run_page("README.md", desk.run)
    assert (desk.folder / "cells" / "segmented" / "masks" / "one.png").is_file()
    assert (desk.folder / "comparison.html").is_file()


def test_the_python_code_of_the_readme_and_the_api_page_runs(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "desk")
    names = [f"{number}.png" for number in range(8)]
    desk.images("cells/images", names, channels=3)
    desk.images("cells/new", ["one.png"], channels=3)
    desk.masks("cells/masks", {name: name for name in names}, (0, 1))
    text = (ROOT / "README.md").read_text() + (ROOT / "docs" / "api.md").read_text()
    pieces = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    first, *others = [piece.replace("minutes=20", "steps=2, model={'width': 4, 'depth': 2}") for piece in pieces]
    assert re.fullmatch(r"mean IoU of the images held out: 0\.\d{3}\n", desk.run(f"python -c {shlex.quote(first)}"))
    assert (desk.folder / "cells" / "segmented" / "masks" / "one.png").is_file()
    for piece in others:
        desk.run(f"python -c {shlex.quote(piece)}")
