"""What a folder of predictions remembers, so that the same command resumes where it was.

state/settings.json        what decides the bits of the results
state/records/NAME.json    one per finished image: what it was made from, its files, its scores; written last
state/parts/NAME.parts/    rows of an image that is at work
"""

import json
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segdist.core.errors import UserError
from segdist.core.files import remove_leftovers, write_json
from segdist.core.formats import stamped, unstamped
from segdist.core.paths import FAILURES, SCORES, STATE
from segdist.inference.parts import Part, find_parts
from segdist.inference.result_identity import ROOT, THREADS, Settings, completed, differences
from segdist.inference.task import ImageTask
from shards.images.opening import split_address

SETTINGS, RECORDS, PARTS, SOURCE = "settings.json", "records", "parts", "source"
SETTINGS_VERSION, RECORD_VERSION, SOURCE_VERSION = 1, 1, 1
"""Version 0 is the same without the number; `source` was a list [source, layers]."""

Record = dict[str, Any]
"""`source`, `files` by kind, `scores` or null."""


class ResultFolder:
    """The output folder of a job on `images`, and the state in it."""

    def __init__(self, folder: Path, images: Sequence[ImageTask]) -> None:
        self.folder, self.images = folder, images
        self.settings_file = folder / STATE / SETTINGS
        self._records = str(folder / STATE / RECORDS)

    def refuse_other_settings(self, settings: Settings) -> None:
        """Compare with the settings of what is there.

        Raises:
            UserError: the folder holds results that were made with other settings (named), or by a later program.
        """
        old = self._settings()
        if old is not None and (found := self._differences(old, settings)):
            raise UserError(
                f"{self.folder} holds predictions that were made with other settings:\n"
                + "\n".join(found)
                + "\n  Give another --out, or --overwrite to discard them."
            )

    def begin(self, settings: Settings, threads: int) -> Settings:
        """Note the settings before the first result is written; discard what was made with others.

        Args:
            threads: of this start, where neither the settings nor what is in the folder says how many.

        Returns:
            The settings that hold from now on.
        """
        remove_leftovers(self.folder, deep=True)
        old = self._settings()
        if old is not None and self._differences(old, settings):
            self._discard()
            old = None
        in_force = settings | {THREADS: (old or {}).get(THREADS) or settings[THREADS] or threads}
        if old is None:
            if not _create_json(self.settings_file, stamped(in_force, SETTINGS_VERSION)):
                # Another task of the array was faster.
                self.refuse_other_settings(settings)
                return self.begin(settings, threads)
        elif old != in_force:
            write_json(self.settings_file, stamped(in_force, SETTINGS_VERSION))
        return in_force

    def _discard(self) -> None:
        """Remove the results that the folder's records name, and its state."""
        state = self.folder / STATE
        for file in (state / RECORDS).rglob("*.json"):
            _remove_files(self.folder, _json(file))
        for pattern in (SCORES, FAILURES):
            for file in self.folder.glob(pattern.replace(".", "*.")):
                file.unlink()
        shutil.rmtree(state)

    def parts_folder(self, image: ImageTask) -> Path:
        """Where the parts of an image are."""
        return self.folder / STATE / PARTS / f"{image.name}.parts"

    def finished_record(self, image: ImageTask) -> Record | None:
        """The record of an image that is finished, was made from the same files, and whose outputs are all there."""
        file = self._record_name(image)  # for a million images, Path costs as much as reading
        try:
            record = unstamped(_json(file), RECORD_VERSION, file)
        except FileNotFoundError:
            return None
        if not _same_source(record["source"], source_of(image)):
            return None
        if not all(os.path.exists(os.path.join(self.folder, name)) for name in record["files"].values()):
            return None
        return record

    def write_record(self, image: ImageTask, files: dict[str, str], scores: dict[str, Any] | None) -> Record:
        """Note that an image is finished, and drop its parts and what killed jobs left of its files."""
        record = {"source": source_of(image), "files": files, "scores": scores}
        write_json(self._record_file(image), stamped(record, RECORD_VERSION))
        shutil.rmtree(self.parts_folder(image), ignore_errors=True)
        self._forget_former_name(image)
        return record

    def _forget_former_name(self, image: ImageTask) -> None:
        """Remove the results that the image had under its short name, before another image needed that as well."""
        path, page = split_address(image.path)
        end = f"-page{page}" if page else ""
        if not image.name.endswith(path.suffix + end):
            return  # it has its short name
        former = self.folder / STATE / RECORDS / f"{image.name.removesuffix(path.suffix + end)}{end}.json"
        if former != self._record_file(image) and former.exists():
            record = _json(former)
            if os.path.basename(record["source"]["image"]) == os.path.basename(image.path):
                _remove_files(self.folder, record)
                former.unlink()

    def parts(self, image: ImageTask) -> list[Part]:
        """The rows of an unfinished image that are done; parts from another file or with other layers are dropped."""
        folder = self.parts_folder(image)
        if not folder.is_dir():
            return []
        marked = _read_source(folder / SOURCE)
        if marked is None or not _same_source(marked[0], source_of(image)) or marked[1] != list(image.layers.dtypes()):
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
        return Path(self._record_name(image))

    def _record_name(self, image: ImageTask) -> str:
        return os.path.join(self._records, f"{image.name}.json")

    def _settings(self) -> Settings | None:
        """What `settings.json` says, without its version."""
        if not self.settings_file.exists():
            return None
        settings = completed(unstamped(_json(self.settings_file), SETTINGS_VERSION, str(self.settings_file)))
        if ROOT not in settings and (folder := self._folder_of_first_image()):
            settings[ROOT] = folder
        return settings

    def _differences(self, old: Settings, settings: Settings) -> list[str]:
        if ROOT in old and not os.path.exists(old[ROOT]):
            # The images may have been moved: then those that are finished are the same files as before.
            records = [self._record_file(image) for image in self.images if self._record_file(image).exists()]
            if not records or any(self.finished_record(image) for image in self.images):
                old = old | {ROOT: settings[ROOT]}
        return differences(old, settings)

    def _folder_of_first_image(self) -> str:
        """In results of version 0, which don't tell the root of their images; empty if there are none yet."""
        for file in (self.folder / STATE / RECORDS).rglob("*.json"):
            name, image = file.relative_to(self.folder / STATE / RECORDS), _json(file)["source"]["image"]
            if os.path.exists(split_address(image)[0]):
                # As far above the image as its name tells.
                return os.path.realpath(Path(os.path.abspath(image)).parents[len(name.parts) - 1])
        return ""


def source_of(image: ImageTask) -> dict[str, Any]:
    """What an image's results are made from: its file and its mask, with size and time of change."""
    header = image.header
    source = {"image": image.path, "bytes": header.size, "changed": header.changed, "upright": header.upright}
    if image.fold:
        source["fold"] = image.fold
    if image.mask is not None:
        try:
            status = os.stat(image.mask)
        except OSError:
            status = None
        source |= {
            "mask": image.mask,
            "mask_bytes": status.st_size if status else 0,
            "mask_changed": status.st_mtime_ns if status else 0,
        }
    return source


def _same_source(there: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether results were made from the same files: an image of the same name in the same root, the same mask."""
    there = {"upright": True} | there  # what it was before there was the choice
    paths = {"image", "mask"}
    if {key: there[key] for key in there if key not in paths} != {key: now[key] for key in now if key not in paths}:
        return False
    if os.path.basename(there["image"]) != os.path.basename(now["image"]):
        return False
    old, new = there.get("mask"), now.get("mask")
    if old is None or new is None or old == new:
        return bool(old == new)
    moved: bool = not os.path.exists(old) and os.path.basename(old) == os.path.basename(new)
    return moved or os.path.realpath(old) == os.path.realpath(new)


def _remove_files(folder: Path, record: Record) -> None:
    for name in record["files"].values():
        file = folder / name
        if file.is_dir():  # Zarr
            shutil.rmtree(file)
        else:
            file.unlink(missing_ok=True)


def _create_json(file: Path, value: Any) -> bool:
    """Write `file` unless it is there already, which is seen however many try at the same moment; False if it was."""
    draft = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
    write_json(draft, value)
    try:
        os.link(draft, file)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
    return True


def _read_source(file: Path) -> tuple[dict[str, Any], list[str]] | None:
    """The source and the layers that a folder of parts is marked with; None for a folder without a mark."""
    if not file.exists():
        return None
    content = _json(file)
    if isinstance(content, list):  # version 0
        content = dict(zip(("source", "layers"), content, strict=True))
    content = unstamped(content, SOURCE_VERSION, str(file))
    return content["source"], content["layers"]


def _json(file: Path | str) -> Any:
    try:
        with open(file, "rb") as opened:
            return json.loads(opened.read())
    except ValueError as error:
        raise UserError(f"{file}: damaged ({error}); delete it, and run the same command again") from None
