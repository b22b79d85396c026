"""Checkpoints: atomic, verified when read, written in the background."""

import copy
import lzma
import re
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from segdist.core.errors import UserError
from segdist.core.files import remove_leftovers, whole_file
from segdist.core.formats import stamped, unstamped
from segdist.core.terminal import warn

StateDict = dict[str, Any]
"""Tensors and plain Python values by name, nested in dictionaries and lists. `Any`, as in torch's own state dicts."""

CHECKPOINT_VERSION = 1
"""1: with this number; 0: without, the same content."""

NAME = re.compile(r"step-(\d{8,})\.pt")

UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
"""What zipfile and torch raise for a damaged file: a flipped bit can make a record look compressed or encrypted."""


class CheckpointFolder:
    """`checkpoints/step-00000450.pt` and its predecessors; the last `keep_last` stay.

    Only rank 0 writes. A full disk, or any other file system error, only causes a warning: the run continues and
    existing checkpoints are kept.
    """

    def __init__(self, folder: Path, keep_last: int, background: bool) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self.background = background
        self._writer: threading.Thread | None = None
        self.last_saved = 0
        """Step of the last checkpoint that was completely written or read."""

    def save(self, state: StateDict, step: int) -> None:
        """Write `state`, which must contain only tensors and plain Python values; waits for the previous write."""
        self.wait()
        state = stamped(state, CHECKPOINT_VERSION)
        if not self.background:
            self._write(state, step)
            return
        # The thread gets a copy, because training changes its tensors while the thread writes.
        snapshot = copy_to_cpu(state)
        self._writer = threading.Thread(target=self._write, args=(snapshot, step), name="checkpoint")
        self._writer.start()

    def close(self) -> None:
        """Finish any write in progress."""
        self.wait()

    def wait(self) -> None:
        """Wait for any write in progress."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def load_latest(self, find_fault: Callable[[StateDict], str] = lambda state: "") -> StateDict | None:
        """The newest intact state, on the CPU; None if there is none.

        A checkpoint that is damaged, or from another run, is named in a warning and renamed, and the previous one is
        used: left in place, it would count as the newest, and newer ones would be deleted in its favor.

        Args:
            find_fault: what is wrong with a readable state; "" for nothing.

        Raises:
            UserError: a newer segdist wrote it.
        """
        remove_leftovers(self.folder)
        for path in reversed(self.paths()):
            state = read_checkpoint(path)
            problem = state if isinstance(state, str) else find_fault(state)
            if not isinstance(state, str) and not problem:
                self.last_saved = checkpoint_step(path)
                return state
            aside = _set_aside(path)
            warn(f"{path}: damaged checkpoint ({problem}), kept as {aside.name}; going back to the one before it")
        return None

    def paths(self) -> list[Path]:
        """The checkpoints, oldest first."""
        found = [path for path in self.folder.glob("step-*.pt") if NAME.fullmatch(path.name)]
        return sorted(found, key=checkpoint_step)

    def try_out(self, state: StateDict) -> None:
        """Write `state` and delete it again, to detect now what would otherwise fail after the first epoch."""
        path = self.folder / "rehearsal.pt"
        try:
            with whole_file(path) as file:
                torch.save(state, file)
        except (OSError, RuntimeError) as error:  # torch wraps some write errors into a RuntimeError
            raise UserError(
                f"no checkpoint can be written to {self.folder} ({error}): make room there, or choose another --name"
            ) from None
        path.unlink()

    def _write(self, state: StateDict, step: int) -> None:
        try:
            with whole_file(self.folder / f"step-{step:08}.pt") as file:
                torch.save(state, file)
            self.last_saved = step
            for old in [path for path in self.paths() if checkpoint_step(path) <= step][: -self.keep_last]:
                old.unlink(missing_ok=True)
        except (OSError, RuntimeError) as error:  # torch wraps some write errors into a RuntimeError
            warn(f"checkpoint of step {step} could not be written ({error}); the run continues with the previous ones")


def checkpoint_step(path: Path) -> int:
    """The step in a checkpoint's file name."""
    match = NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path} is not a checkpoint")
    return int(match.group(1))


def read_checkpoint(path: Path) -> StateDict | str:
    """The state in a checkpoint file, on the CPU, or what is wrong with the file.

    Raises:
        UserError: a newer segdist wrote it.
    """
    problem = find_damage(path)
    if problem is not None:
        return problem
    # The zip's own tables have no checksum, so torch may reject a file that looked intact. And a file that would run
    # code, which `weights_only` refuses, can raise any exception.
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return _fault_of(state, path) or unstamped(state, CHECKPOINT_VERSION, str(path))


def _fault_of(state: object, path: Path) -> str:
    """Evidence that a state was not written under this name; "" for none."""
    counters = state.get("counters") if isinstance(state, dict) else None
    if not isinstance(counters, dict):
        return "it holds no state of a run"
    step = counters.get("step")
    return "" if step == checkpoint_step(path) else f"it holds step {step}"


def _set_aside(path: Path) -> Path:
    """Rename a checkpoint so that it is ignored but kept for the user."""
    names = (f"damaged-{path.stem}{number}.pt" for number in ("", *(f"-{n}" for n in range(2, 10**6))))
    aside = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    return path.rename(aside)


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, None if nothing: torch's format is a zip, with a CRC for each record."""
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
    except UNREADABLE as error:
        return str(error) or type(error).__name__
    return None if record is None else f"wrong checksum of {record}"


def copy_to_cpu(value: Any) -> Any:  # Any: a part of a `StateDict`
    """A deep copy of a tree of dictionaries, lists and tensors, on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copy_to_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copy_to_cpu(item) for item in value)
    return copy.deepcopy(value)
