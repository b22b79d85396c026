"""A fold of a cross-validation, as named in runs, model cards and commands."""

import re
from dataclasses import dataclass
from pathlib import Path

from segdist.core.errors import UserError

MOST_FOLDS = 1000


@dataclass(frozen=True)
class Fold:
    """Fold `number` (from 1) of `count`; the seed determines which images it holds out."""

    number: int
    count: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.number}/{self.count}"


def parse_fold(text: str, seed: int) -> Fold:
    """Parse "k/n".

    Raises:
        UserError: the text has another form, or isn't 1 <= k <= n with n from 2 to 1000.
    """
    match = re.fullmatch(r"([0-9]{1,4})/([0-9]{1,4})", text)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= max(count, 1) or not 2 <= count <= MOST_FOLDS:
        raise UserError(f"--fold {text}: write k/n, the k-th of n folds; k from 1 to n, n from 2 to {MOST_FOLDS}")
    return Fold(number, count, seed)


def fold_folder(folder: Path, number: int) -> Path:
    """The run folder of a fold, in that of its cross-validation."""
    return folder / f"fold-{number}"


def is_fold(folder: Path) -> bool:
    """True if the folder has a name given by `fold_folder`."""
    return re.fullmatch(r"fold-[0-9]+", folder.name) is not None


def folds_of(folder: Path) -> list[Path]:
    """The runs `fold-1` to `fold-K` in a folder, trained on parts of one shard set; empty for any other folder."""
    folds = [path for path in folder.glob("fold-*") if path.is_dir() and is_fold(path)]
    return sorted(folds, key=lambda path: int(path.name.removeprefix("fold-")))
