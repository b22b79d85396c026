"""What a folder of predictions remembers, so that the same command resumes where it was.

state/settings.json        what decides the bits of the results
state/records/NAME.json    one per finished image: what it was made from, its files, its scores; written last
state/parts/NAME.parts/    rows of an image that is at work
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from segdist.core.errors import UserError
from segdist.core.files import remove_leftovers, write_json
from segdist.core.formats import stamped, unstamped
from segdist.core.parsing import to_dict
from segdist.core.paths import STATE
from segdist.inference.config import OutputConfig
from segdist.inference.parts import Part, find_parts
from segdist.inference.task import ImageTask, Task
from shards.images.config import MasksConfig

SETTINGS, RECORDS, PARTS, SOURCE = "settings.json", "records", "parts", "source"
SETTINGS_VERSION, RECORD_VERSION, SOURCE_VERSION = 1, 1, 1
"""Version 0 is the same without the number; `source` was a list [source, layers]."""

Record = dict[str, Any]
"""`source`, `files` by kind, `scores` or null."""


def result_settings(task: Task, device: torch.device) -> dict[str, Any]:
    """Everything but the images that the results depend on."""
    config = task.config
    return {
        "model": file_checksum(task.model_file),
        "tile": task.tile,
        "overlap": config.overlap,
        "blending": config.blending,
        "borders": config.borders,
        "flips": config.flips,
        "batch_size": config.batch_size,
        "roi": list(config.roi) if config.roi else None,
        "precision": task.precision.name,
        "channels_last": config.channels_last,
        "compile": config.compile,
        "device": device.type,
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "masks": _deciding(config.masks, "folder"),
        "output": _deciding(config.output, "figures"),
    }


class ResultFolder:
    """The output folder of a job and the state in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings_file = folder / STATE / SETTINGS

    def refuse_other_settings(self, settings: dict[str, Any]) -> None:
        """Compare with the settings of what is there.

        Raises:
            UserError: the folder holds results that were made with other settings (named), or by a later program.
        """
        old = self._settings()
        if old is None:
            return
        differences = [
            f"  {key}: there {old.get(key)!r}, now {settings.get(key)!r}"
            for key in dict.fromkeys([*old, *settings])
            if old.get(key) != settings.get(key)
        ]
        if differences:
            raise UserError(
                f"{self.folder} holds predictions that were made with other settings:\n"
                + "\n".join(differences)
                + "\n  Give another --out, or --overwrite to discard them."
            )

    def begin(self, settings: dict[str, Any]) -> None:
        """Note the settings before the first result is written; discard what was made with others."""
        remove_leftovers(self.folder, deep=True)
        old = self._settings()
        if old == settings:
            return
        if old is not None:
            shutil.rmtree(self.folder / STATE)
        write_json(self.settings_file, stamped(settings, SETTINGS_VERSION))

    def parts_folder(self, image: ImageTask) -> Path:
        """Where the parts of an image are."""
        return self.folder / STATE / PARTS / f"{image.name}.parts"

    def finished_record(self, image: ImageTask) -> Record | None:
        """The record of an image that is finished, was made from the same files, and whose outputs are all there."""
        file = self._record_file(image)
        if not file.exists():
            return None
        record = unstamped(_json(file), RECORD_VERSION, str(file))
        if record["source"] != source_of(image):
            return None
        if not all((self.folder / name).exists() for name in record["files"].values()):
            return None
        return record

    def write_record(self, image: ImageTask, files: dict[str, str], scores: dict[str, Any] | None) -> Record:
        """Note that an image is finished, and drop its parts and what killed jobs left of its files."""
        record = {"source": source_of(image), "files": files, "scores": scores}
        write_json(self._record_file(image), stamped(record, RECORD_VERSION))
        shutil.rmtree(self.parts_folder(image), ignore_errors=True)
        return record

    def parts(self, image: ImageTask) -> list[Part]:
        """The rows of an unfinished image that are done; parts from another file or with other layers are dropped."""
        folder = self.parts_folder(image)
        if not folder.is_dir():
            return []
        marked = _read_source(folder / SOURCE)
        if marked is None or marked != (source_of(image), list(image.layers.dtypes())):
            shutil.rmtree(folder)
            return []
        return find_parts(folder)

    def begin_parts(self, image: ImageTask) -> Path:
        """The folder for an image's parts, marked with what they are made from."""
        folder = self.parts_folder(image)
        made_from = {"source": source_of(image), "layers": list(image.layers.dtypes())}
        write_json(folder / SOURCE, stamped(made_from, SOURCE_VERSION))
        return folder

    def _record_file(self, image: ImageTask) -> Path:
        return self.folder / STATE / RECORDS / f"{image.name}.json"

    def _settings(self) -> dict[str, Any] | None:
        """What `settings.json` says, without its version; settings that it doesn't know count as their defaults."""
        if not self.settings_file.exists():
            return None
        settings = unstamped(_json(self.settings_file), SETTINGS_VERSION, str(self.settings_file))
        settings["masks"] = _deciding(MasksConfig(), "folder") | settings["masks"]
        settings["output"] = _deciding(OutputConfig(), "figures") | settings["output"]
        return settings


def source_of(image: ImageTask) -> dict[str, Any]:
    """What an image's results are made from: its file and its mask, with size and time of change."""
    source: dict[str, Any] = {"image": image.path, "bytes": image.header.size, "changed": image.header.changed}
    if image.mask is not None:
        path = Path(image.mask)
        status = path.stat() if path.exists() else None
        source |= {
            "mask": image.mask,
            "mask_bytes": status.st_size if status else 0,
            "mask_changed": status.st_mtime_ns if status else 0,
        }
    return source


def file_checksum(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_source(file: Path) -> tuple[dict[str, Any], list[str]] | None:
    """The source and the layers that a folder of parts is marked with; None for a folder without a mark."""
    if not file.exists():
        return None
    content = _json(file)
    if isinstance(content, list):  # version 0
        content = dict(zip(("source", "layers"), content, strict=True))
    content = unstamped(content, SOURCE_VERSION, str(file))
    return content["source"], content["layers"]


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file}: damaged ({error}); delete it, and run the same command again") from None


def _deciding(config: MasksConfig | OutputConfig, without: str) -> dict[str, Any]:
    """A section of the config without the one setting that doesn't decide the results."""
    return {key: value for key, value in to_dict(config).items() if key != without}
