"""What an earlier process of the run left in W&B's own files, read back with W&B's own tool.

A piece is the folder `<run>/wandb/[offline-]run-<date>-<id>` of one process; the `.wandb` file in it is W&B's
transaction log, flushed every second.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STEP = "trainer/step"
"""Our own step: W&B's `_step` is numbered anew where offline pieces are merged."""


def last_step_in(piece: Path) -> int:
    """The last step that is safely in a piece; -1 where there is none.

    Raises:
        OSError: the piece can't be read.
    """
    summary = json.loads(_inspect(piece, "--summary"))["summary"]
    return int(summary.get(STEP, -1))


def rows_in(piece: Path, after: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Steps above `after` and their scalars, in order; pictures are files of their own and left out.

    Raises:
        OSError: the piece can't be read.
    """
    for line in _inspect(piece).splitlines():
        record = json.loads(line)
        if record["type"] != "history":
            continue
        item = record["history"]["item"]
        step = int(item.get(STEP, -1))
        media = {key.split(".")[0] for key in item if key.endswith("._type")}
        if step > after:
            yield step, {key: value for key, value in item.items() if _is_scalar(key, value, media)}


def _is_scalar(key: str, value: Any, media: set[str]) -> bool:
    return isinstance(value, int | float) and key[0] != "_" and key != STEP and key.split(".")[0] not in media


def _inspect(piece: Path, *options: str) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(piece)]
    try:
        return subprocess.run(command, capture_output=True, timeout=120, check=True, text=True).stdout
    except subprocess.SubprocessError as error:
        raise OSError(f"{piece} can't be read back ({error})") from error
