"""Summarize a shard set: its figures, and a contact sheet of patches with their masks."""

import io

import numpy as np
from numpy.typing import NDArray

from segdist.core.json_values import JsonObject
from segdist.core.keyed import Purpose, generator
from shards.manifest import IGNORE, ClassInfo, median_frequency_weights
from shards.pixels import Pixels
from shards.read.reader import ShardSet

COLUMNS, ROWS = 6, 4
_GAP = 4


def summary(shard_set: ShardSet) -> str:
    """Counts, classes, splits, sizes and recipe of a set, as lines for a terminal."""
    manifest = shard_set.manifest
    size = manifest.patch
    lines = [
        f"{shard_set.folder}  (fingerprint {manifest.fingerprint[:12]})",
        f"  patches   {size} x {size}, {manifest.channels} channel{'s' * (manifest.channels > 1)}, {manifest.dtype}, "
        f"stored as {manifest.encoding}",
    ]
    for split in ("train", "val", "test"):
        shards = manifest.of_split(split)
        megabytes = sum(shard.bytes for shard in shards) / 1e6
        stored = f"{manifest.samples(split)} patches in {len(shards)} shards, {megabytes:.1f} MB; " if shards else ""
        lines.append(f"  {split:<9} {stored}{len(manifest.sources.get(split, ()))} source images")
    lines += ["  train split, per channel (stored units):"]
    for channel, (mean, std) in enumerate(zip(manifest.mean, manifest.std, strict=True)):
        lines.append(f"    channel {channel}   mean {mean:.3f}   standard deviation {std:.3f}")
    lines += ["  train split, per class:", *_class_lines(shard_set)]
    if manifest.ignored_pixels:
        total = manifest.ignored_pixels + sum(manifest.pixels)
        lines.append(f"  ignored   {manifest.ignored_pixels / total:.2%} of the pixels")
    lines += ["  recipe (what isn't shown is empty):", *_recipe_lines(manifest.recipe)]
    return "\n".join(lines)


def _recipe_lines(values: JsonObject, prefix: str = "") -> list[str]:
    """One line per non-empty setting, by its command-line name."""
    lines = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += _recipe_lines(value, f"{prefix}{key}.")
        elif value not in (None, "", []):
            shown = " ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"    {(prefix + key).replace('_', '-')} = {shown}")
    return lines


def contact_sheet(shard_set: ShardSet, split: str = "train", seed: int = 0) -> bytes:
    """A PNG of random patches: each image next to its mask in the class colors; ignored pixels are magenta."""
    from PIL import Image

    manifest = shard_set.manifest
    sizes = np.cumsum(shard_set.sizes(split))
    count = min(COLUMNS * ROWS, int(sizes[-1]))
    chosen = np.sort(generator(seed, Purpose.CONTACT_SHEET).choice(int(sizes[-1]), count, replace=False))
    shard = np.searchsorted(sizes, chosen, side="right")
    record = chosen - np.concatenate([[0], sizes])[shard]
    images, masks = shard_set.read(split, shard, record)
    cell_height, cell_width = manifest.patch + _GAP, 2 * manifest.patch + 2 * _GAP
    rows = -(-count // COLUMNS)
    sheet = np.full((rows * cell_height + _GAP, COLUMNS * cell_width + _GAP, 3), 255, np.uint8)
    shown = _as_rgb(images)
    colors = palette(manifest.classes)
    for place in range(count):
        y = _GAP + place // COLUMNS * cell_height
        x = _GAP + place % COLUMNS * cell_width
        for part, at in ((shown[place], x), (colors[masks[place]], x + manifest.patch)):
            sheet[y : y + manifest.patch, at : at + manifest.patch] = part
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "PNG")
    return buffer.getvalue()


def palette(classes: tuple[ClassInfo, ...]) -> NDArray[np.uint8]:
    """Color (256, 3) of each stored label."""
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(classes)] = [info.color for info in classes]
    colors[IGNORE] = 255, 0, 255
    return colors


def _as_rgb(images: Pixels) -> NDArray[np.uint8]:
    """Patches (n, C, P, P) of any depth as (n, P, P, 3) bytes: RGB as is, otherwise the first channel as gray."""
    if images.dtype == np.uint16:
        low, high = np.percentile(images, (0.5, 99.5))
        images = ((np.clip(images, low, high) - low) * (255 / max(high - low, 1))).astype(np.uint8)
    chosen = images if images.shape[1] == 3 else np.repeat(images[:, :1], 3, axis=1)
    return np.moveaxis(chosen, 1, -1)


def _class_lines(shard_set: ShardSet) -> list[str]:
    manifest = shard_set.manifest
    patches_with = np.zeros(len(manifest.classes), np.int64)
    for number in range(len(manifest.of_split("train"))):
        patches_with += (shard_set.index("train", number)["counts"] > 0).sum(axis=0)
    total, patches = max(sum(manifest.pixels), 1), max(manifest.samples("train"), 1)
    width = max(len(info.name) for info in manifest.classes)
    lines = []
    for label, (info, pixels, weight) in enumerate(
        zip(manifest.classes, manifest.pixels, median_frequency_weights(manifest.pixels), strict=True)
    ):
        color = "#{:02x}{:02x}{:02x}".format(*info.color)
        lines.append(
            f"    {label:>3} {info.name:<{width}} {color}  {pixels / total:7.2%} of pixels  weight {weight:7.3f}  "
            f"in {patches_with[label] / patches:6.1%} of patches"
        )
    return lines
