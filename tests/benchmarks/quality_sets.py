"""Folders of labeled images with fixed splits, as `segdist make-shards` reads them.

A set is a folder with `pairs.csv` (columns image, mask, split: train or test; paths relative to the folder) and
`set.json`: `{"classes": {NAME: [values], …}, "ignore": [values]}`, label 0 first. A value is a gray value or a color
[r, g, b]. Pixels with other values are ignored.
"""

import csv
import json
from pathlib import Path
from typing import Literal

Part = Literal["test", "choose"]
"""The images scored: the test images, or some of the training images, which are then left out of training."""
CHOOSE_EVERY, CHOOSE_EVERY_FEW = 5, 3
"""To choose, every 5th training image is held out, or every 3rd if there are fewer than ten."""
FEW = 10


class LabeledSet:
    """One set."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder.resolve(), folder.resolve().name
        self.description = json.loads((folder / "set.json").read_text())
        self.classes = list(self.description["classes"])

    def shard_options(self, part: Part, scratch: Path) -> list[str]:
        """Options of `segdist make-shards` for images, masks, classes and splits, without choices."""
        classes = [f"{name}={','.join(map(_value, values))}" for name, values in self.description["classes"].items()]
        ignored = [_value(value) for value in self.description.get("ignore", [])]
        options = ["--images.csv", str(self._pairs(part, scratch)), "--masks.classes", *classes]
        options += ["--masks.ignore", *ignored] if ignored else []
        return [*options, "--masks.unknown", "ignore"]

    def _pairs(self, part: Part, scratch: Path) -> Path:
        """Write a CSV file with absolute paths, in which training images have no split yet."""
        with (self.folder / "pairs.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        train = sorted((row for row in rows if row["split"] != "test"), key=lambda row: row["image"])
        held = [row for row in rows if row["split"] == "test"]
        if part == "choose":
            held, train = held_to_choose(train)
        path = scratch / f"{self.name}-{part}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "mask", "split"])
            for split, some in (("", train), ("test", held)):
                writer.writerows([self.folder / row["image"], self.folder / row["mask"], split] for row in some)
        return path


def held_to_choose(train: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Divide a set's training images into (held out, used for training)."""
    every = CHOOSE_EVERY_FEW if len(train) < FEW else CHOOSE_EVERY
    held = [row for number, row in enumerate(train) if number % every == every // 2]
    return held, [row for row in train if row not in held]


def find_sets(folders: list[Path]) -> list[LabeledSet]:
    """Sets given or contained in `folders`. Raises SystemExit for a folder without any."""
    found = []
    for folder in folders:
        here = [folder, *sorted(folder.iterdir())] if folder.is_dir() else []
        inside = [item for item in here if (item / "pairs.csv").is_file() and (item / "set.json").is_file()]
        if not inside:
            raise SystemExit(f"error: {folder}: no set (pairs.csv and set.json) here or one folder below")
        found += inside
    return [LabeledSet(folder) for folder in found]


def _value(value: int | list[int]) -> str:
    return str(value) if isinstance(value, int) else "#{:02x}{:02x}{:02x}".format(*value)
