"""Append-only logs of finished images: to resume a million images, a few files are read, not a million.

state/finished/00000001-3fa2b1c0.jsonl    a line per finished image, from one rank of one start:
    {"crc": "1c291ca3", "name": "a/b", "record": {…}}
state/records/NAME.json                   one file per image, from earlier versions; read, not written

`crc` is the CRC-32 of the line from `"name"` to its end. An image's last line counts; `null` as record revokes it.
"""

import json
import os
import uuid
import zlib
from collections.abc import Container
from pathlib import Path

from segdist.core.errors import UserError
from segdist.core.files import whole_file
from segdist.core.formats import unstamped
from segdist.core.json_values import JsonObject, JsonValue
from segdist.core.terminal import warn

LOGS, FORMER = "finished", "records"
FORMER_VERSION = 1
"""Version 0 only lacks the number. Lines of logs have none: the version of `settings.json` covers them."""

CHECKED = len('{"crc": "00000000", ')
"""Where the checksummed part of a line begins."""
NAME = CHECKED + len('"name": ')

Record = JsonObject
"""Of a finished image: `source` (what it was made from), `files` and their `bytes` by kind, `scores` or null."""


class FinishedLog:
    """The logs in the state of a folder of predictions. Each process appends to its own file."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._mine: Path | None = None

    def append(self, name: str, record: Record | None) -> None:
        """Record that image `name` is finished, or with None that it no longer is; durable on return."""
        if self._mine is None:
            self._mine = self._new_file()
        checked = json.dumps({"name": name, "record": record}, allow_nan=False)[1:].encode() + b"\n"
        with self._mine.open("ab") as file:
            file.write(_opening(checked) + checked)
            file.flush()
            os.fsync(file.fileno())

    def read(self, names: Container[str] | None = None) -> dict[str, Record]:
        """The records of finished images, by name; if `names` is given, only of those.

        Ignores a line cut short by a kill; warns of damaged ones, and ignores them too.

        Raises:
            UserError: a record of an earlier version is damaged.
        """
        records = {}
        former = self._state / FORMER
        for file in former.rglob("*.json"):
            name = file.relative_to(former).as_posix().removesuffix(".json")
            if names is None or name in names:
                records[name] = unstamped(read_json(file), FORMER_VERSION, str(file))
        for file in self._files():
            _read_lines(file, names, records)
        return records

    def _files(self) -> list[Path]:
        """The logs, oldest start first."""
        return sorted((self._state / LOGS).glob("*.jsonl"))

    def _new_file(self) -> Path:
        """Create an empty log that sorts after those of earlier starts."""
        files = self._files()
        number = int(files[-1].name.partition("-")[0]) + 1 if files else 1
        path = self._state / LOGS / f"{number:08}-{uuid.uuid4().hex[:8]}.jsonl"
        with whole_file(path):
            pass  # makes its name durable before the first line
        return path


def read_json(file: Path) -> JsonValue:
    """The content of a file of the state.

    Raises:
        UserError: it isn't valid JSON.
    """
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file}: damaged ({error}); delete it, and run the same command again") from None


def _read_lines(file: Path, names: Container[str] | None, records: dict[str, Record]) -> None:
    """Update `records` with the lines of a log."""
    name_at = json.JSONDecoder().raw_decode
    damaged = 0
    with file.open("rb") as lines:
        for line in lines:
            checked = line[CHECKED:]
            if line[:CHECKED] != _opening(checked):
                damaged += line.endswith(b"\n")  # without a newline, its writer was killed
                continue
            text = line.decode()
            name, _ = name_at(text, NAME)
            if names is not None and name not in names:
                continue  # without decoding the rest: each rank reads all lines, but needs only its share
            if record := json.loads(text)["record"]:
                records[name] = record
            else:
                records.pop(name, None)
    if damaged:
        warn(f"{file}: {damaged} damaged lines are ignored; segdist infer computes their images again")


def _opening(checked: bytes) -> bytes:
    """The start of a line, up to its checksummed part."""
    return b'{"crc": "%08x", ' % zlib.crc32(checked)
