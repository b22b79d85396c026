"""The state in a folder of predictions, from which the same command resumes.

state/settings.json        settings that determine the bits of the results
state/finished/*.jsonl     a line per finished image: what it was made from, its files, its scores; written last
state/parts/NAME.parts/    rows of an image in progress
"""

import os
import shutil
import uuid
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from segdist.core.errors import UserError
from segdist.core.files import remove_leftovers, write_json
from segdist.core.formats import stamped, unstamped
from segdist.core.json_values import JsonObject
from segdist.core.paths import FAILURES, SCORES, STATE
from segdist.inference.finished_log import FinishedLog, Record, read_json
from segdist.inference.parts import Part, find_parts
from segdist.inference.result_identity import PREPARED, ROOT, THREADS, Settings, completed, differences
from segdist.inference.task import ImageTask
from shards.images.opening import split_address

SETTINGS, PARTS, SOURCE = "settings.json", "parts", "source"
SETTINGS_VERSION, SOURCE_VERSION = 2, 1
"""Version 0 only lacks the number, except that `source` was a list [source, layers]. The version of the settings also
covers the logs: up to 1, each finished image had a file in `records`."""


class ResultFolder:
    """The output folder of a job on `images`, and the state in it."""

    def __init__(self, folder: Path, images: Sequence[ImageTask]) -> None:
        self.folder, self.images = folder, images
        self.settings_file = folder / STATE / SETTINGS
        self._log = FinishedLog(folder / STATE)

    def refuse_other_settings(self, settings: Settings) -> None:
        """Compare with the settings of the results in the folder.

        Raises:
            UserError: the folder holds results made with other settings (which are named), or by a newer version.
        """
        old = self._settings()
        if old is not None and (found := self._differences(old, settings)):
            raise UserError(
                f"{self.folder} holds predictions that were made with other settings:\n"
                + "\n".join(found)
                + "\n  Give another --out, or --overwrite to discard them."
            )

    def begin(self, settings: Settings, threads: int, overwrite: bool) -> Settings:
        """Record the settings before the first result is written.

        Args:
            threads: used if neither the settings nor the folder say how many.
            overwrite: discard results made with other settings.

        Returns:
            The settings in force from now on.

        Raises:
            UserError: results made with other settings, without `overwrite`: another job may have been faster.
        """
        remove_leftovers(self.folder, deep=True)
        old = self._settings()
        if old is not None and self._differences(old, settings):
            if not overwrite:
                self.refuse_other_settings(settings)
            self._discard()
            old = None
        in_force = settings | {THREADS: (old or {}).get(THREADS) or settings[THREADS] or threads}
        in_force[PREPARED] = (old or settings)[PREPARED]
        content = stamped(in_force, SETTINGS_VERSION)
        if old is None:
            if not _create_json(self.settings_file, content):
                return self.begin(settings, threads, overwrite)  # another task of the array was faster
        elif read_json(self.settings_file) != content:
            write_json(self.settings_file, content)
        return in_force

    def _discard(self) -> None:
        """Remove the results listed in the folder's records, and its state."""
        state = self.folder / STATE
        for record in self._log.read().values():
            _remove_files(self.folder, record)
        for pattern in (SCORES, FAILURES):
            for file in self.folder.glob(pattern.replace(".", "*.")):
                file.unlink()
        shutil.rmtree(state)

    def parts_folder(self, image: ImageTask) -> Path:
        """The folder of an image's parts."""
        return self.folder / STATE / PARTS / f"{image.name}.parts"

    def finished_records(self, images: Sequence[ImageTask]) -> dict[int, Record]:
        """The records, by image number, of images that were finished from the same files, and whose outputs all exist
        in their original size."""
        by_name = {image.name: image for image in images}
        records = self._log.read(by_name)
        return {
            image.number: record
            for name, record in records.items()
            if _same_source(record["source"], source_of(image := by_name[name])) and self._outputs_are_there(record)
        }

    def _outputs_are_there(self, record: Record) -> bool:
        sizes = record.get("bytes", {})  # missing in earlier versions, and for Zarr folders
        for kind, name in record["files"].items():
            try:
                size = os.stat(f"{self.folder}/{name}").st_size  # for a million images, Path costs as much as reading
            except OSError:
                return False
            if size != sizes.get(kind, size):  # cut short, or edited
                return False
        return True

    def write_record(self, image: ImageTask, files: dict[str, str], scores: JsonObject | None) -> Record:
        """Record that an image is finished, and remove its parts and results under a former name."""
        there = {kind: self.folder / name for kind, name in files.items()}
        sizes = {kind: file.stat().st_size for kind, file in there.items() if file.is_file()}
        record = {"source": source_of(image), "files": files, "bytes": sizes, "scores": scores}
        self._log.append(image.name, record)
        shutil.rmtree(self.parts_folder(image), ignore_errors=True)
        self._forget_former_name(image)
        return record

    def _forget_former_name(self, image: ImageTask) -> None:
        """Remove results under the image's short name, from before another image needed that name too."""
        former = _short_name(image)
        record = self._under_short_names.get(former) if former else None
        if record and os.path.basename(record["source"]["image"]) == os.path.basename(image.path):
            _remove_files(self.folder, record)
            self._log.append(former, None)

    @cached_property
    def _under_short_names(self) -> dict[str, Record]:
        """Records under the short names of images whose names now have a suffix."""
        return self._log.read({name for image in self.images if (name := _short_name(image))})

    def parts(self, image: ImageTask) -> list[Part]:
        """The finished rows of an unfinished image; parts from another file or with other layers are dropped."""
        folder = self.parts_folder(image)
        if not folder.is_dir():
            return []
        marked = _read_source(folder / SOURCE)
        if marked is None or not _same_source(marked[0], source_of(image)) or marked[1] != list(image.layers.dtypes()):
            shutil.rmtree(folder)
            return []
        return find_parts(folder)

    def begin_parts(self, image: ImageTask) -> Path:
        """Mark the folder of an image's parts with what they are made from, and return it."""
        folder = self.parts_folder(image)
        made_from = {"source": source_of(image), "layers": list(image.layers.dtypes())}
        write_json(folder / SOURCE, stamped(made_from, SOURCE_VERSION))
        return folder

    def _settings(self) -> Settings | None:
        """The content of `settings.json`, without its version."""
        if not self.settings_file.exists():
            return None
        settings = completed(unstamped(read_json(self.settings_file), SETTINGS_VERSION, str(self.settings_file)))
        if ROOT not in settings and (folder := self._folder_of_first_image()):
            settings[ROOT] = folder
        return settings

    def _differences(self, old: Settings, settings: Settings) -> list[str]:
        if ROOT in old and not os.path.exists(old[ROOT]):
            # The images may have been moved: then the finished ones are still the same files.
            names = {image.name for image in self.images}
            if self.finished_records(self.images) or not self._log.read(names):
                old = old | {ROOT: settings[ROOT]}
        return differences(old, settings)

    def _folder_of_first_image(self) -> str:
        """The root of the images of version 0, which doesn't record it; empty if there are no results yet."""
        for name, record in self._log.read().items():
            image = record["source"]["image"]
            if os.path.exists(split_address(image)[0]):
                # As many levels above the image as its name has.
                return os.path.realpath(Path(os.path.abspath(image)).parents[name.count("/")])
        return ""


def source_of(image: ImageTask) -> JsonObject:
    """What an image's results are made from: its file and its mask, with sizes and modification times."""
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


def _same_source(there: JsonObject, now: JsonObject) -> bool:
    """Whether results were made from the same files: an image of the same name in the same root, the same mask."""
    there = {"upright": True, **there}  # before this was recorded, it was always so
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


def _short_name(image: ImageTask) -> str:
    """The name that an image had before another one needed it too; empty if it still has that name."""
    path, page = split_address(image.path)
    end = f"-page{page}" if page else ""
    if not path.suffix or not image.name.endswith(path.suffix + end):
        return ""
    return image.name.removesuffix(path.suffix + end) + end


def _remove_files(folder: Path, record: Record) -> None:
    for name in record["files"].values():
        file = folder / name
        if file.is_dir():  # Zarr
            shutil.rmtree(file)
        else:
            file.unlink(missing_ok=True)


def _create_json(file: Path, value: object) -> bool:
    """Create `file`; False if it exists, even if several processes try at the same time."""
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


def _read_source(file: Path) -> tuple[JsonObject, list[str]] | None:
    """The source and the layers that a folder of parts is marked with; None for a folder without a mark."""
    if not file.exists():
        return None
    content = read_json(file)
    if isinstance(content, list):  # version 0
        content = dict(zip(("source", "layers"), content, strict=True))
    content = unstamped(content, SOURCE_VERSION, str(file))
    return content["source"], content["layers"]
