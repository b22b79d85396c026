"""Untrusted shard sets: nothing outside their folder is touched, and impossible values are refused at once."""

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segdist.core.errors import UserError
from shards.manifest import MANIFEST, read_manifest
from shards.read.reader import ShardSet
from shards.read.verify import verify
from shards.records import decode_png, encode_png
from tests.support.sets import tiny_set


@pytest.fixture
def values(small_set: Path) -> dict[str, Any]:
    return json.loads((small_set / MANIFEST).read_text())


def change(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """`values` with the value at a dotted path replaced."""
    inner: Any = values
    *parts, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parts:
        inner = inner[part]
    inner[last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("shards.0.file", "./../../.bashrc"),
        ("shards.0.file", "/etc/passwd"),
        ("shards.0.file", "train-00000.tar\0.png"),
        ("shards.0.file", ".manifest.json"),
        ("shards.0.split", "test"),
        ("shards.0.sha256", "../" * 20),
        ("shards.0.samples", 10**12),
        ("shards.0.samples", -1),
        ("shards.0.bytes", 10**15),
        ("patch", 10**9),
        ("patch", 0),
        ("channels", 10**9),
        ("dtype", "object"),
        ("encoding", "pickle"),
        ("mean", []),
        ("std", [-1.0]),
        ("pixels", [1]),
        ("classes", []),
        ("classes.0.color", [0, 0, 999]),
        ("classes.0.name", "a\nb"),
        ("sources.elsewhere", []),
    ],
)
def test_a_manifest_with_impossible_values_is_refused(
    values: dict[str, Any], tmp_path: Path, path: str, value: Any
) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps(change(values, path, value)))
    with pytest.raises(UserError, match=r"damaged or forged|wrong value"):
        read_manifest(tmp_path)


def test_a_remote_set_writes_nothing_outside_its_cache(values: dict[str, Any], tmp_path: Path) -> None:
    """The shard's name points to a user's file, and its bytes come from the attacker."""
    pytest.importorskip("fsspec")
    remote = tmp_path / "remote" / "a" / "b"
    remote.mkdir(parents=True)
    (tmp_path / "remote" / ".bashrc").write_text("the stranger's")
    (tmp_path / "home" / "cache").mkdir(parents=True)
    (tmp_path / "home" / ".bashrc").write_text("mine")
    change(values, "shards.0.file", "./../../.bashrc")
    (remote / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(UserError, match="shards must be in the set's folder"):
        ShardSet(f"file://{remote}", cache=tmp_path / "home" / "cache")
    assert (tmp_path / "home" / ".bashrc").read_text() == "mine"
    assert list((tmp_path / "home" / "cache").iterdir()) == []


def test_a_png_member_that_claims_a_gigantic_size_is_not_decoded(tmp_path: Path) -> None:
    """The header of a 32 x 32 image claims 30,000 x 30,000 pixels; decoding would take 900 MB."""
    content = bytearray(encode_png(np.zeros((32, 32), np.uint8)))
    content[16:24] = (30_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    with pytest.raises(ValueError, match="30000 x 30000 pixels instead of 32 x 32"):
        decode_png(bytes(content), 32)


def test_verify_refuses_members_that_training_would_refuse(tmp_path: Path) -> None:
    """The tar's headers are changed, and the manifest's checksum is updated to match."""
    folder = tiny_set(tmp_path)
    manifest = json.loads((folder / MANIFEST).read_text())
    shard = folder / manifest["shards"][0]["file"]
    content = bytearray(shard.read_bytes())
    content[0] = ord("X")
    shard.write_bytes(content)
    manifest["shards"][0]["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert any("damaged header" in problem for problem in verify(folder, quiet=True))
    with pytest.raises(UserError, match="damaged header"):
        ShardSet(folder).read("train", np.array([0]), np.array([0]))
