"""Checkpoints: whole or absent, damage found, nothing lost on a full disk."""

from pathlib import Path
from typing import Any

import pytest
import torch

import segdist.training.checkpoint
from segdist.training.checkpoint import CheckpointFolder, find_damage


def state(number: int) -> dict[str, Any]:
    return {"weights": torch.full((1000,), float(number)), "counters": {"step": number}}


def folder(path: Path, keep_last: int = 3, background: bool = False) -> CheckpointFolder:
    return CheckpointFolder(path / "checkpoints", keep_last, background)


@pytest.mark.parametrize("background", [False, True])
def test_the_last_k_are_kept_and_the_newest_is_loaded(tmp_path: Path, background: bool) -> None:
    checkpoints = folder(tmp_path, keep_last=2, background=background)
    for step in (5, 10, 15, 100_000_000):
        checkpoints.save(state(step), step)
    checkpoints.close()
    assert [path.name for path in checkpoints.paths()] == ["step-00000015.pt", "step-100000000.pt"]
    loaded = checkpoints.load_latest()
    assert loaded is not None
    assert loaded["counters"] == {"step": 100_000_000}


def test_what_changes_while_it_is_written_is_not_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = folder(tmp_path, background=True)
    weights = torch.zeros(10)
    real_save = torch.save

    def slow_save(value: Any, file: Any) -> None:
        weights.fill_(7)  # the next step
        real_save(value, file)

    monkeypatch.setattr(segdist.training.checkpoint.torch, "save", slow_save)
    checkpoints.save({"weights": weights}, 1)
    checkpoints.close()
    monkeypatch.undo()
    loaded = checkpoints.load_latest()
    assert loaded is not None
    assert loaded["weights"].tolist() == [0.0] * 10


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "garbage"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
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


def test_every_flipped_byte_of_the_tensors_is_found(tmp_path: Path) -> None:
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


def test_no_flipped_bit_stops_the_run(tmp_path: Path) -> None:
    checkpoints = folder(tmp_path)
    checkpoints.save({"step": torch.tensor([1])}, 1)
    checkpoints.save({"step": torch.tensor([2])}, 2)
    last = checkpoints.paths()[-1]
    content = last.read_bytes()
    for bit in range(3, 8 * len(content), 29):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        last.write_bytes(flipped)
        loaded = checkpoints.load_latest()
        assert loaded is not None
        assert loaded["step"].item() in (1, 2)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert folder(tmp_path).load_latest() is None


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_is_a_warning_and_harms_nothing(
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


def test_only_plain_data_can_be_loaded(tmp_path: Path) -> None:
    """A checkpoint from a stranger can't run code: weights_only is on."""

    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return print, ("code from a checkpoint",)

    checkpoints = folder(tmp_path)
    checkpoints.save({"evil": Evil()}, 1)
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        checkpoints.load_latest()
