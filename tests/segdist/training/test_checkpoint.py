"""Checkpoints are complete or absent, damage is detected, and a full disk loses nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch

import segdist.training.checkpoint
from segdist.core.files import whole_file
from segdist.training.checkpoint import CheckpointFolder, find_damage


def state(number: int) -> dict[str, Any]:
    return {"weights": torch.full((1000,), float(number)), "counters": {"step": number}}


def small_state(number: int) -> dict[str, Any]:
    return {"step": torch.tensor([number]), "counters": {"step": number}}


def folder(path: Path, keep_last: int = 3, background: bool = False) -> CheckpointFolder:
    return CheckpointFolder(path / "checkpoints", keep_last, background)


@pytest.mark.parametrize("background", [False, True])
def test_the_last_k_checkpoints_are_kept_and_the_newest_is_loaded(tmp_path: Path, background: bool) -> None:
    checkpoints = folder(tmp_path, keep_last=2, background=background)
    for step in (5, 10, 15, 100_000_000):
        checkpoints.save(state(step), step)
    checkpoints.close()
    assert [path.name for path in checkpoints.paths()] == ["step-00000015.pt", "step-100000000.pt"]
    loaded = checkpoints.load_latest()
    assert loaded is not None
    assert loaded["counters"] == {"step": 100_000_000}


def test_changes_during_a_write_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = folder(tmp_path, background=True)
    weights = torch.zeros(10)
    real_save = torch.save

    def slow_save(value: Any, file: Any) -> None:
        weights.fill_(7)  # the next step
        real_save(value, file)

    monkeypatch.setattr(segdist.training.checkpoint.torch, "save", slow_save)
    checkpoints.save({"weights": weights, "counters": {"step": 1}}, 1)
    checkpoints.close()
    monkeypatch.undo()
    loaded = checkpoints.load_latest()
    assert loaded is not None
    assert loaded["weights"].tolist() == [0.0] * 10


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "garbage"])
def test_a_damaged_checkpoint_is_named_and_the_previous_one_used(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = folder(tmp_path)
    checkpoints.save(state(1), 1)
    checkpoints.save(state(2), 2)
    last = checkpoints.paths()[-1]
    content = bytearray(last.read_bytes())
    if damage == "flipped":
        content[content.index(torch.full((4,), 2.0).numpy().tobytes()) + 1] ^= 1
    last.write_bytes({"cut": content[:-200], "empty": b"", "garbage": b"x" * 5000}.get(damage, content))
    loaded = checkpoints.load_latest()
    assert loaded is not None
    assert loaded["counters"] == {"step": 1}
    assert last.name in capsys.readouterr().err


def test_every_flipped_byte_in_the_tensors_is_detected(tmp_path: Path) -> None:
    checkpoints = folder(tmp_path)
    checkpoints.save(state(2), 2)
    path = checkpoints.paths()[0]
    content = path.read_bytes()
    start = content.index(torch.full((4,), 2.0).numpy().tobytes())
    for position in range(start, start + 4000, 371):
        flipped = bytearray(content)
        flipped[position] ^= 0x10
        path.write_bytes(flipped)
        assert find_damage(path) is not None


@pytest.mark.slow
def test_no_flipped_bit_stops_the_run(tmp_path: Path) -> None:
    checkpoints = folder(tmp_path)
    checkpoints.save(small_state(1), 1)
    checkpoints.save(small_state(2), 2)
    last = checkpoints.paths()[-1]
    content = last.read_bytes()
    for bit in range(3, 8 * len(content), 29):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        last.write_bytes(flipped)
        loaded = checkpoints.load_latest()
        assert loaded is not None
        assert loaded["step"].item() == loaded["counters"]["step"]
        if not last.exists():  # set aside
            next(checkpoints.folder.glob("damaged-*")).rename(last)


def test_without_a_checkpoint_nothing_is_loaded(tmp_path: Path) -> None:
    assert folder(tmp_path).load_latest() is None


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_causes_only_a_warning(
    tmp_path: Path, background: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = folder(tmp_path, background=background)
    checkpoints.save(state(1), 1)
    checkpoints.wait()

    def full(value: Any, file: Any) -> None:
        file.write(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segdist.training.checkpoint.torch, "save", full)
    checkpoints.save(state(2), 2)
    checkpoints.close()
    assert "No space left" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001.pt"]


def test_a_checkpoint_that_would_run_code_is_set_aside_and_the_previous_one_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return print, ("code from a checkpoint",)

    checkpoints = folder(tmp_path)
    checkpoints.save(state(1), 1)
    checkpoints.save({"evil": Evil(), "counters": {"step": 2}}, 2)
    loaded = checkpoints.load_latest()
    assert loaded is not None
    assert loaded["counters"] == {"step": 1}
    told = capsys.readouterr()
    assert "code from a checkpoint" not in told.out
    assert "step-00000002.pt: damaged checkpoint (UnpicklingError" in told.err


def test_damaged_checkpoints_are_renamed_and_never_displace_a_new_one(tmp_path: Path) -> None:
    """If all checkpoints are damaged, the run restarts from 0 and keeps what it writes then."""
    checkpoints = folder(tmp_path, keep_last=2)
    for step in (50, 60):
        checkpoints.save(state(step), step)
    for path in checkpoints.paths():
        path.write_bytes(b"damaged")
    assert checkpoints.load_latest() is None
    for step in (5, 10, 15):
        checkpoints.save(state(step), step)
    assert [path.name for path in checkpoints.paths()] == ["step-00000010.pt", "step-00000015.pt"]
    assert sorted(path.name for path in checkpoints.folder.glob("damaged*")) == [
        "damaged-step-00000050.pt",
        "damaged-step-00000060.pt",
    ]
    checkpoints.paths()[-1].rename(checkpoints.folder / "step-00000060.pt")  # from another step than its name says
    loaded = checkpoints.load_latest()
    assert loaded is not None
    assert loaded["counters"] == {"step": 10}
    assert (checkpoints.folder / "damaged-step-00000060-2.pt").exists()


def test_a_foreign_checkpoint_with_a_later_step_does_not_displace_new_ones(tmp_path: Path) -> None:
    checkpoints = folder(tmp_path, keep_last=1)
    checkpoints.save(state(99), 99)
    assert checkpoints.load_latest(lambda state: "it is for another model") is None
    checkpoints.save(state(3), 3)
    torch.save(state(99), checkpoints.folder / "step-00000099.pt")  # copied here during the run
    checkpoints.save(state(6), 6)
    assert (checkpoints.folder / "step-00000006.pt").exists()
    assert checkpoints.last_saved == 6


def test_leftovers_of_killed_writers_are_removed_and_active_files_kept(tmp_path: Path) -> None:
    checkpoints = folder(tmp_path)
    checkpoints.save(state(1), 1)
    (checkpoints.folder / ".step-00000002.pt.0123abcd.tmp").touch()
    (checkpoints.folder / ".mine.tmp").touch()
    with whole_file(checkpoints.folder / "step-00000003.pt"):
        assert checkpoints.load_latest() is not None
        assert len(list(checkpoints.folder.glob(".step-00000003*.tmp"))) == 1
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == [
        ".mine.tmp",
        "step-00000001.pt",
        "step-00000003.pt",
    ]
