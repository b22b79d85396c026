"""What training looks at before it uses samples."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from segdist.train_config import TrainConfig
from segdist.training_data import TrainingData
from shards.errors import UserError
from shards.tar_records import BLOCK
from tests.shards.conftest import make_shards, small_config


@pytest.mark.parametrize(("check", "found"), [("sizes", False), ("shards", True), ("records", True)])
def test_a_flipped_bit_is_found_while_training_reads_if_wanted(tmp_path: Path, check: Any, found: bool) -> None:
    config = small_config(tmp_path)
    make_shards(config, quiet=True)
    tar = config.folder / "train-00002.tar"
    content = bytearray(tar.read_bytes())
    content[3 * BLOCK] ^= 1
    tar.write_bytes(content)
    data = TrainingData(TrainConfig(data=(str(config.folder),), batch_size=4, data_check=check))
    if not found:
        assert len(list(islice(data.batches(0), data.steps_per_epoch))) == data.steps_per_epoch
        return
    with pytest.raises(UserError, match=r"train-00002\.tar.*wrong checksum"):
        list(islice(data.batches(0), data.steps_per_epoch))
