"""Integrity checks before samples are used."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from segdist.core.errors import UserError
from segdist.training.config import TrainConfig
from segdist.training.data import TrainingData
from shards.records import BLOCK
from tests.support.sets import SMALL_PATCHES, tiny_set


@pytest.mark.parametrize(("check", "found"), [("sizes", False), ("shards", True), ("records", True)])
def test_a_flipped_bit_is_found_during_training_if_requested(tmp_path: Path, check: Any, found: bool) -> None:
    folder = tiny_set(tmp_path)
    tar = folder / "train-00002.tar"
    content = bytearray(tar.read_bytes())
    content[3 * BLOCK] ^= 1
    tar.write_bytes(content)
    data = TrainingData(TrainConfig(data=(str(folder),), batch_size=4, data_check=check))
    if not found:
        data.check.start = lambda: None  # type: ignore[method-assign]  # the background check would also find it
        assert len(list(islice(data.batches(0), data.steps_per_epoch))) == data.steps_per_epoch
        return
    with pytest.raises(UserError, match=r"train-00002\.tar.*wrong checksum"):
        list(islice(data.batches(0), data.steps_per_epoch))


def test_validation_batches_do_not_grow_with_the_global_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_set(tmp_path)

    def largest(ranks: int) -> int:
        data = TrainingData(TrainConfig(data=(str(folder),), batch_size=64), 0, ranks)
        assert data.validation is not None
        return max(len(batch.images) for batch in data.validation)

    monkeypatch.setattr("segdist.training.data.VALIDATION_PATCHES", 3)
    assert [largest(ranks) for ranks in (1, 2)] == [3, 3]
    monkeypatch.setattr("segdist.training.data.VALIDATION_PIXELS", 2 * SMALL_PATCHES.size**2 + 1)
    assert largest(1) == 2
    monkeypatch.setattr("segdist.training.data.VALIDATION_PIXELS", 1)
    assert largest(1) == 1
