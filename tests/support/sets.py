"""Tiny shard sets for tests, built by the real program in about a second, and folders of labeled images."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from shards.build.build import make_shards
from shards.build.config import ImagesConfig, MakeShardsConfig, PatchesConfig, SplitConfig, SyntheticConfig
from shards.images.config import MasksConfig
from shards.manifest import Manifest
from shards.read.reader import ShardSet

SMALL_PATCHES = PatchesConfig(size=32, per_image=6)


def tiny_config(
    root: Path, name: str = "tiny", patches: PatchesConfig = SMALL_PATCHES, **changes: Any
) -> MakeShardsConfig:
    """13 synthetic images of 90 x 70, 3 held out, with 6 patches of 32 x 32 each, built in this process."""
    drawn = SyntheticConfig(train=10, test=3, width=70, height=90)
    return replace(MakeShardsConfig(name=name, root=root, processes=1, synthetic=drawn, patches=patches), **changes)


def tiny_set(root: Path, name: str = "tiny", patches: PatchesConfig = SMALL_PATCHES, **changes: Any) -> Path:
    """Build the set of `tiny_config`; return its folder."""
    config = tiny_config(root, name, patches, **changes)
    make_shards(config, quiet=True)
    return config.folder


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def noise(seed: int, height: int = 40, width: int = 30, channels: int = 1, dtype: str = "uint8") -> np.ndarray:
    """An image (H, W), or (H, W, C) for several channels."""
    values = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (height, width, channels)).astype(dtype)
    return values[:, :, 0] if channels == 1 else values


def labels(height: int = 40, width: int = 30) -> np.ndarray:
    """A mask (H, W) with diagonal stripes of 0 and 255, so that every patch has both."""
    return (np.add.outer(np.arange(height), np.arange(width)) // 5 % 2 * 255).astype(np.uint8)


def save(path: Path, array: np.ndarray) -> None:
    """Save an image or mask in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        kind_of_values = "rgb" if array.shape[2:] == (3,) else "minisblack"
        tifffile.imwrite(path, array, rowsperstrip=8, photometric=kind_of_values, planarconfig="contig")
    else:
        Image.fromarray(array).save(path)


def add(folder: Path, name: str, image: np.ndarray, mask: np.ndarray | None = None, mask_name: str = "") -> None:
    """Save an image in folder/images and its mask, if given, in folder/masks."""
    save(folder / "images" / name, image)
    if mask is not None:
        save(folder / "masks" / (mask_name or f"{name.rpartition('.')[0]}.png"), mask)


def own_config(folder: Path, **changes: Any) -> MakeShardsConfig:
    """Settings for folder/images and folder/masks, with 5 patches of 16 x 16 per image. Only `patches.channels` and
    `images.upright` are left to be chosen."""
    base = MakeShardsConfig(
        name="own",
        root=folder / "data",
        processes=1,
        images=ImagesConfig(folder=folder / "images"),
        masks=MasksConfig(folder=folder / "masks", classes=("background=0", "cell=255")),
        split=SplitConfig(validation=0.1, test=0.0),
        patches=PatchesConfig(size=16, per_image=5, drop_background=False, balance=0.0, scale=1),
    )
    return replace(base, **changes)


def build_own(folder: Path, **changes: Any) -> Manifest:
    """Build the set of `own_config`; return its manifest."""
    config = own_config(folder, **changes)
    config.validate()
    manifest = make_shards(config, quiet=True)
    assert manifest is not None
    return manifest


def bright(image: np.ndarray) -> np.ndarray:
    """The mask of an image's bright pixels, 0 and 255, which shows whether a stored patch has its own mask."""
    gray = image if image.ndim == 2 else image[..., 0]
    return np.where(gray > 128, 255, 0).astype(np.uint8)


def assert_patches_have_their_masks(folder: Path) -> int:
    """Assert that every patch of the set in `folder` has the mask given by `bright`; return the number of patches."""
    shard_set = ShardSet(folder)
    count = 0
    for split in ("train", "val"):
        for shard, size in enumerate(shard_set.sizes(split)):
            images, masks = shard_set.read(split, np.full(size, shard), np.arange(size))
            assert np.array_equal(masks, images[:, 0] > 128)
            count += size
    return count


def blobs(seed: int, value: int = 255, side: int = 120) -> np.ndarray:
    """A mask of `side` x `side` pixels with a randomly placed disk of `value`."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] - random.integers(30, side - 30, 2)[:, None, None]
    return np.where(y**2 + x**2 < 200, value, 0).astype(np.uint8)
