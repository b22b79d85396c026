"""webdataset reads the tars."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from shards.read.reader import ShardSet


def read_with_webdataset(folder: Path, split: str, files: int) -> list[dict[str, Any]]:
    pattern = str(folder / f"{split}-{{00000..{files - 1:05}}}.tar")
    return list(webdataset.WebDataset(pattern, shardshuffle=False))


@pytest.mark.parametrize("encoding", ["npy", "png"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_webdataset_reads_the_same_samples(small_set: Path, small_png_set: Path, encoding: str, split: str) -> None:
    shard_set = ShardSet(small_set if encoding == "npy" else small_png_set)
    sizes = shard_set.sizes(split)
    samples = read_with_webdataset(shard_set.folder, split, len(sizes))
    assert len(samples) == sum(sizes)
    assert len({sample["__key__"] for sample in samples}) == len(samples)
    position = 0
    for shard, size in enumerate(sizes):
        for record in range(size):
            images, masks = shard_set.read(split, np.array([shard]), np.array([record]))
            sample = samples[position]
            assert np.array_equal(decode(sample[f"image.{encoding}"], encoding).reshape(1, 32, 32), images[0])
            assert np.array_equal(decode(sample[f"mask.{encoding}"], encoding), masks[0])
            position += 1


def decode(content: bytes, encoding: str) -> np.ndarray:
    return np.load(io.BytesIO(content)) if encoding == "npy" else np.asarray(Image.open(io.BytesIO(content)))
