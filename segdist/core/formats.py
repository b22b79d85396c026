"""Format versions, by which old files can be read and newer ones are refused.

Every file that segdist writes and reads back holds a `format_version`. segdist reads all versions up to its own; a
setting that an old file lacks takes the value that matches the behavior of the time. Files from newer versions are
refused with an error message.
"""

from segdist.core.errors import UserError
from segdist.core.json_values import JsonObject

VERSION_KEY = "format_version"

RUN_VERSION = 2
"""Version of a run folder: of `config.json`, which also covers the rows of `metrics.jsonl` and `events.jsonl`, and of
`summary.json`. 2: `choices`, `minutes` and `inference`; 0, without a number: the U-Net is segdist.unet:UNet."""


def stamped(values: JsonObject, version: int) -> JsonObject:
    """`values` with their format version prepended."""
    return {VERSION_KEY: version, **values}


def read_version(values: object, newest: int, origin: str) -> int:
    """The format version of file contents; 0 for files older than format versions.

    Args:
        values: the contents, a JSON object.
        newest: the version that this program writes.
        origin: the file, for the message.

    Raises:
        UserError: the contents aren't an object, the version isn't a number, or a newer segdist wrote the file.
    """
    if not isinstance(values, dict):
        raise UserError(f"{origin}: damaged: it holds {type(values).__name__}, not an object")
    version = values.get(VERSION_KEY, 0)
    if not isinstance(version, int) or isinstance(version, bool) or version < 0:
        raise UserError(f"{origin}: damaged: its format version is {version!r}")
    if version > newest:
        raise UserError(
            f"{origin}: format version {version}, written by a newer segdist; this one reads versions up to {newest}; "
            "update it (pip install --upgrade segdist)"
        )
    return version


def unstamped(values: JsonObject, newest: int, origin: str) -> JsonObject:
    """`values` without their format version, after checking it with `read_version`."""
    read_version(values, newest, origin)
    return {key: value for key, value in values.items() if key != VERSION_KEY}
