"""The example script runs from start to finish, and one command makes the pictures of the docs."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.support.desk import Desk
from tests.support.pages import PAGES
from tests.support.programs import ROOT

EXAMPLE = ROOT / "docs" / "examples" / "zero_to_prediction.py"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def test_the_example_has_valid_cells() -> None:
    cells = re.split(r"^# %%", EXAMPLE.read_text(), flags=re.MULTILINE)
    assert cells[0] == ""
    assert len(cells) > 10
    for cell in cells[1:]:
        compile("#" + cell, "cell", "exec")
        if cell.startswith(" [markdown]"):
            assert all(not line or line.startswith("#") for line in cell.splitlines()[1:]), cell


@pytest.mark.slow
def test_the_example_leads_from_no_data_to_a_prediction(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "desk")
    text = EXAMPLE.read_text()
    assert "\nSTEPS = 120\n" in text
    (desk.folder / "example.py").write_text(text.replace("\nSTEPS = 120\n", "\nSTEPS = 40\n"))
    said = desk.run("python example.py")
    score = re.search(r"^mean IoU +([\d.]+)$", said, re.MULTILINE)
    assert score is not None
    assert float(score[1]) > 0.4  # always predicting the largest class gives 0.3
    for name in ("patches.png", "prediction.png"):
        with Image.open(desk.folder / "zero" / name) as picture:
            assert picture.width > 300
    assert (desk.folder / "zero" / "runs" / "discs" / "report.html").is_file()
    assert "finished already" in desk.run("python example.py")


def test_the_command_makes_every_picture_of_the_docs() -> None:
    made = set(re.findall(r'"((?:images/)?[\w-]+\.(?:png|svg))"\)', (ROOT / "docs" / "make_pictures.py").read_text()))
    shown = {
        (page.parent / target).relative_to(ROOT / "docs").as_posix()
        for page in PAGES
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text())
    }
    assert shown == made
    stored = {
        file.relative_to(ROOT / "docs").as_posix()
        for kind in ("png", "svg")
        for file in (ROOT / "docs").rglob(f"*.{kind}")
    }
    assert stored == made


@pytest.mark.slow
def test_pictures_are_made_from_a_run(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "desk")
    desk.run("segdist make-shards -f demo --synthetic.train 10 --synthetic.test 2")
    desk.run("segdist train -f demo --wandb off --validate-every 2\nsegdist infer -m demo -f demo --wandb off")
    wanted = "result,status" + (",report" if CHROMIUM else "")
    desk.run(f"python docs/make_pictures.py --out out --only {wanted}")
    out = desk.folder / "out" / "images"
    worst = json.loads((desk.folder / "runs/demo/predictions/demo/scores.json").read_text())["worst"][0]
    figure = desk.folder / "runs/demo/predictions/demo/figures" / f"{worst}.png"
    assert (out / "result.png").read_bytes() == figure.read_bytes()
    drawn = (out / "status.svg").read_text()
    assert "ellipse" in drawn
    assert "https://" not in drawn
    if CHROMIUM:
        with Image.open(out / "report.png") as picture:
            colors = picture.convert("RGB")
        assert colors.getpixel((40, 400)) == (255, 255, 255)  # margin of the light page
        assert sum(colors.getpixel((picture.width - 40, 400))) < 150  # margin of the dark page
