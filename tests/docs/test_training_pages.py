"""The commands on the pages about data, training, exact training and cross-validation run in order."""

import re
from pathlib import Path

import pytest

from segdist.runs.record import read_rows
from tests.support.desk import Desk
from tests.support.pages import run_page
from tests.support.programs import ROOT

pytestmark = pytest.mark.slow


def test_the_commands_of_the_data_page_run(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "desk")
    photos = [f"{number}.png" for number in range(10)]
    desk.images("photos", photos)
    desk.masks("labels", {name: name for name in photos}, (0, 255))
    rats = [f"sub-rat{rat}_sample-data{sample}_SEM" for sample, rat in enumerate((1, 2, 3, 3, 3, 4, 5, 6, 7, 8))]
    desk.images("axon_sem/images", [f"{rat}.png" for rat in rats])
    masks = {f"{rat}.png": f"{rat}_seg-axonmyelin-manual.png" for rat in rats}
    desk.masks("axon_sem/masks", masks, (0, 127, 255))
    # As in the public set, one mask has nine stray pixels.
    desk.masks("axon_sem/masks", dict([list(masks.items())[1]]), (0, 127, 255, 130))
    told = "--images.folder photos --masks.folder labels --masks.classes background=0 cell=255"

    def run(text: str) -> None:
        text = text.replace("…", told)
        if "--task 0/8" in text:
            text = "\n".join(text.replace("0/8", f"{task}/8") for task in range(8))
        if "-f axons" in text and "--masks.unknown ignore" not in text:
            assert "values in the masks that belong to no class" in desk.run(text, code=2)
        else:
            desk.run(text)

    run_page("data.md", run)
    assert (desk.folder / "data" / "axons" / "contact_sheet.png").is_file()
    assert (desk.folder / "data" / "big" / "manifest.json").is_file()


def test_the_commands_of_the_exact_training_page_run(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "desk")
    desk.run("segdist make-shards -f cells --synthetic.train 10 --synthetic.test 2")

    def run(text: str) -> None:
        # The second training takes one step more here; a constant rate doesn't depend on the length.
        text = text.replace("--exact", "--exact --optim.schedule constant").replace("--step 1200", "--step 6")
        said = desk.run(text)
        if "replay" in text:
            assert "recorded steps: the same weights, bit by bit" in said

    run_page("exact.md", run)


def test_the_commands_of_the_training_page_run(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "desk")
    desk.run("segdist make-shards -f cells --synthetic.train 10 --synthetic.test 2")
    run_page("training.md", desk.run)
    assert read_rows(desk.folder / "runs" / "cells" / "metrics.jsonl")


def test_the_commands_of_the_cross_validation_page_run(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "desk")
    desk.run("segdist make-shards -f cells --synthetic.train 6 --synthetic.test 2")
    run_page("cross-validation.md", desk.run)
    promised = re.findall(r"^\| `(.*?)` \|", (ROOT / "docs" / "cross-validation.md").read_text(), re.MULTILINE)
    for file in ", ".join(promised).replace("`", "").split(", "):
        place = desk.folder / "runs" / "cells-cv"
        assert (place / file).exists() or (place / "out-of-fold" / file).exists(), file
