"""What an output folder remembers, so that the same command goes on where it was.

state/settings.json        what decides the bits of the results
state/records/NAME.json    one per finished image: what it was made from, its files, its scores; written last
state/parts/NAME.parts/    rows of an image that is at work
"""

import glob
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from segdist.core.errors import UserError
from segdist.core.files import whole_file, write_json
from segdist.core.parsing import to_dict
from segdist.inference.config import InferConfig
from segdist.inference.inputs import Header, InputImage
from segdist.inference.parts import Part, find_parts

STATE = "state"


def result_settings(
    config: InferConfig, model: Path, tile: int, precision: str, device: torch.device
) -> dict[str, Any]:
    """Everything but the images that the results depend on."""
    return {
        "model": file_checksum(model),
        "tile": tile,
        "overlap": config.overlap,
        "blending": config.blending,
        "borders": config.borders,
        "flips": config.flips,
        "batch_size": config.batch_size,
        "roi": list(config.roi) if config.roi else None,
        "precision": precision,
        "channels_last": config.channels_last,
        "compile": config.compile,
        "device": device.type,
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "masks": {key: value for key, value in to_dict(config.masks).items() if key != "folder"},
        "output": {key: value for key, value in to_dict(config.output).items() if key != "figures"},
    }


class OutputFolder:
    """The output folder of a job and the state in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings_file = folder / STATE / "settings.json"

    def refuse_other_settings(self, settings: dict[str, Any]) -> None:
        """Raises UserError, with the differences, if the folder holds results that were made with other settings."""
        if not self.settings_file.exists():
            return
        old = json.loads(self.settings_file.read_text())
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
        if self.settings_file.exists():
            if json.loads(self.settings_file.read_text()) == settings:
                return
            shutil.rmtree(self.folder / STATE)
        write_json(self.settings_file, settings)

    def parts_folder(self, image: InputImage) -> Path:
        """Where the parts of an image are."""
        return self.folder / STATE / "parts" / f"{image.name}.parts"

    def _record_file(self, image: InputImage) -> Path:
        return self.folder / STATE / "records" / f"{image.name}.json"

    def finished_record(self, image: InputImage, header: Header) -> dict[str, Any] | None:
        """The record of an image that is finished, was made from the same files, and whose outputs are all there."""
        file = self._record_file(image)
        if not file.exists():
            return None
        record: dict[str, Any] = json.loads(file.read_text())
        if record["source"] != source_of(image, header):
            return None
        if not all((self.folder / name).exists() for name in record["files"].values()):
            return None
        return record

    def write_record(self, image: InputImage, record: dict[str, Any]) -> None:
        """Note that an image is finished, and drop its parts and what killed jobs left of its files."""
        write_json(self._record_file(image), record)
        shutil.rmtree(self.parts_folder(image), ignore_errors=True)
        for file in (self._record_file(image), *(self.folder / name for name in record["files"].values())):
            for leftover in file.parent.glob(f".{glob.escape(file.name)}.*.tmp"):
                leftover.unlink(missing_ok=True)

    def parts(self, image: InputImage, header: Header, layers: list[str]) -> list[Part]:
        """The rows of an unfinished image that are done; parts from another file or with other layers are dropped."""
        folder = self.parts_folder(image)
        source = folder / "source"
        if not folder.is_dir():
            return []
        expected = json.dumps([source_of(image, header), layers])
        if not source.exists() or source.read_text() != expected:
            shutil.rmtree(folder)
            return []
        return find_parts(folder)

    def begin_parts(self, image: InputImage, header: Header, layers: list[str]) -> Path:
        """The folder for an image's parts, marked with what they are made from."""
        folder = self.parts_folder(image)
        with whole_file(folder / "source") as file:
            file.write(json.dumps([source_of(image, header), layers]).encode())
        return folder


def source_of(image: InputImage, header: Header) -> dict[str, Any]:
    """What an image's results are made from: its file and its mask, with size and time of change."""
    source: dict[str, Any] = {"image": image.path, "bytes": header.size, "changed": header.changed}
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
