"""Settings of a job chain: options of make-shards, a leading name, minutes."""

import json
import re
from pathlib import Path

import pytest

from jobs.command_line import parse
from jobs.config import ChainConfig, PipelineConfig, SubmitPipelineConfig, name_first
from segdist.core.errors import UserError
from tests.support.programs import job, run
from tests.support.sets import add, blobs, noise


def chain(*arguments: str) -> ChainConfig:
    return parse(PipelineConfig, name_first(list(arguments)), "pipeline", "").job


def test_a_name_can_come_first() -> None:
    assert chain("cells").name == "cells"
    assert chain("--name", "cells").name == "cells"
    assert chain("cells", "--fresh").name == "cells"
    assert chain("--fresh").name == "pipeline"
    assert parse(SubmitPipelineConfig, name_first(["cells"]), "submit pipeline", "").job.name == "cells"


def test_only_options_of_make_shards_go_to_make_shards() -> None:
    tables = chain(
        *("cells", "--images.folder", "photos", "--masks.folder", "labels", "--split.test", "0.3", "--minutes", "7")
    ).tables()
    assert tables["make_shards"] == {
        "images": {"folder": "photos"},
        "masks": {"folder": "labels"},
        "split": {"test": 0.3},
        "tracking": {"wandb": "auto"},
    }
    assert tables["train"] == {"minutes": 7.0}
    assert tables["infer"] == {}


def test_an_option_overrides_the_table() -> None:
    table = json.dumps({"patches": {"size": 64, "per_image": 5}})
    found = chain("--make-shards", table, "--patches.size", "96").tables()["make_shards"]
    assert found["patches"] == {"size": 96, "per_image": 5}


def test_the_length_is_given_only_once() -> None:
    with pytest.raises(UserError, match="--minutes and epochs of train"):
        chain("--minutes", "5", "--train", '{"epochs": 3}')


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_folders_lead_to_scores_and_a_report_with_default_settings(tmp_path: Path) -> None:
    for number in range(8):
        mask = blobs(number)
        image = (noise(number, 120, 120) // 4 + mask // 2).astype("uint8")
        add(tmp_path, f"{number}.png", image, mask)
    line = ["cells", "--images.folder", "images", "--masks.folder", "masks", "--minutes", "0.3", "--processes", "1"]
    command = job("pipeline", [*line, "--tracking", '{"wandb": "off"}', "--train", '{"threads": 1}'])
    said = run(command, tmp_path).stdout
    for setting in ("masks.classes", "split.test", "patches.size", "model.width", "inference.tile"):
        assert re.search(rf"^  {re.escape(setting)} = .+: .+", said, re.MULTILINE), setting
    folder = tmp_path / "runs" / "cells"
    scores = json.loads((folder / "predictions" / "cells" / "scores.json").read_text())
    assert 0 <= scores["mean_iou_pixels"] <= 1
    assert len(scores["images"]) == 1
    assert (folder / "report.html").is_file()
    again = run(command, tmp_path).stdout
    assert "already finished, with this recipe" in again
    assert "finished already, after" in again
