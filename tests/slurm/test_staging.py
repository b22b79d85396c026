"""Staging a folder to a node's local disk: complete, verified, copied once."""

import os
from pathlib import Path

import pytest

from segdist.core.errors import UserError
from slurm import staging
from slurm.staging import staged


def make_set(folder: Path) -> Path:
    """Create a folder with files on two levels."""
    (folder / "train").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    (folder / "train" / "000.tar").write_bytes(os.urandom(100_000))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_copy_equals_the_original_and_other_ranks_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_set(tmp_path / "set")
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "disk"))
    copy = staged(source, "$NODE_DISK", local_rank=0)
    assert content(copy) == content(source)
    assert staged(source, "$NODE_DISK", local_rank=3) == copy
    assert [path.name for path in (tmp_path / "disk").iterdir()] == [copy.name]


def test_a_copy_is_reused_until_the_original_changes(tmp_path: Path) -> None:
    source = make_set(tmp_path / "set")
    first = staged(source, str(tmp_path / "disk"), 0)
    marker = first / "marker"
    marker.touch()
    assert staged(source, str(tmp_path / "disk"), 0) == first
    assert marker.exists()
    (source / "train" / "001.tar").write_bytes(b"new")
    assert "train/001.tar" in content(staged(source, str(tmp_path / "disk"), 0))


def test_a_copy_that_differs_is_refused_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_set(tmp_path / "set")

    def lying_fsync(descriptor: int) -> None:
        os.pwrite(descriptor, b"\0damaged", 0)

    monkeypatch.setattr(staging.os, "fsync", lying_fsync)
    with pytest.raises(UserError, match="differs from"):
        staged(source, str(tmp_path / "disk"), 0)
    assert list((tmp_path / "disk").iterdir()) == []


def test_an_unset_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_DISK", raising=False)
    with pytest.raises(UserError, match=r"--stage-to \$NO_SUCH_DISK: no such variable"):
        staged(make_set(tmp_path / "set"), "$NO_SUCH_DISK", 0)


def test_nothing_to_copy_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nothing there to copy"):
        staged(tmp_path / "empty", str(tmp_path / "disk"), 0)
