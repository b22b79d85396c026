"""Refuse impossible manifests: a damaged or forged one is rejected before anything else is read."""

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from shards.records import BLOCK, END, MAX_RECORDS, NpyLayout

MOST_CLASSES = 255
LARGEST_PATCH, MOST_CHANNELS = 2**16, 2**12
PNG_SLACK = 2**16
"""Maximum bytes by which a record of PNG files can exceed the same record as arrays."""

_Manifest = Any
"""A `shards.manifest.Manifest`; that module imports this one, so its classes can't be imported here."""
_ShardInfo = Any
"""Likewise."""

_SHARD_NAME = re.compile(r"(train|val)-[0-9]{5,6}\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def impossible(manifest: _Manifest) -> str:
    """Describe anything in the manifest that segdist never writes, such as a file outside the set; "" if all is well.

    Args:
        manifest: a `shards.manifest.Manifest`.
    """
    return next(_impossible(manifest), "")


def _impossible(manifest: _Manifest) -> Iterator[str]:
    classes, channels = manifest.classes, manifest.channels
    if not 1 <= len(classes) <= MOST_CLASSES or len(manifest.pixels) != len(classes):
        yield f"{len(classes)} classes but {len(manifest.pixels)} pixel counts"
    for info in classes:
        if not info.name.isprintable() or not all(0 <= value <= 255 for value in info.color):
            yield f"class {info.name!r} of color {info.color}"
    if not 1 <= manifest.patch <= LARGEST_PATCH or not 1 <= channels <= MOST_CHANNELS:
        yield f"patches of {manifest.patch} pixels in {channels} channels"
    if manifest.dtype not in ("uint8", "uint16") or manifest.encoding not in ("npy", "png"):
        yield f"images of {manifest.dtype!r}, encoded as {manifest.encoding!r}"
    statistics = (*manifest.mean, *manifest.std)
    if not len(manifest.mean) == len(manifest.std) == channels or not all(map(math.isfinite, statistics)):
        yield f"means {manifest.mean} and deviations {manifest.std} for {channels} channels"
    if min((*manifest.std, *manifest.pixels, manifest.ignored_pixels)) < 0:
        yield "negative deviations or counts"
    if unknown := manifest.sources.keys() - {"train", "val", "test"}:
        yield f"sources of the splits {sorted(unknown)}"
    layout = NpyLayout(manifest.patch, channels, str(np.dtype(manifest.dtype)))
    for shard in manifest.shards:
        yield from _impossible_shard(shard, layout, manifest.encoding)
    if len({shard.file for shard in manifest.shards}) != len(manifest.shards):
        yield "the same shard twice"


def _impossible_shard(shard: _ShardInfo, layout: NpyLayout, encoding: str) -> Iterator[str]:
    name = _SHARD_NAME.fullmatch(shard.file)
    if name is None or name.group(1) != shard.split:
        yield f"a shard of the split {shard.split!r} called {shard.file!r}; shards must be in the set's folder"
    if not _SHA256.fullmatch(shard.sha256) or not _SHA256.fullmatch(shard.index_sha256):
        yield f"{shard.file}: invalid checksums"
    if not 0 <= shard.samples <= MAX_RECORDS:
        yield f"{shard.file}: {shard.samples} samples"
    size, most = shard.bytes - len(END), shard.samples * layout.stride
    if encoding == "npy":
        fits = size == most
    else:
        fits = 4 * BLOCK * shard.samples <= size <= most + PNG_SLACK * shard.samples
    if not fits:
        yield f"{shard.file}: {shard.bytes} bytes for {shard.samples} samples"
