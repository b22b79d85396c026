"""Format versions: what a file says about itself, so that old files are read and newer ones are refused.

Every file that segdist writes and reads back holds a `format_version`. A program reads all versions up to its own, in
which a missing setting counts as the behavior that it had then; files of a later program are refused in a sentence.
"""

from typing import Any

from segdist.core.errors import UserError

VERSION_KEY = "format_version"

RUN_VERSION = 2
"""Of a run's folder: of `config.json`, which stands for the rows of `metrics.jsonl` and `events.jsonl` as well, and of
`summary.json`. 2: `choices`, `minutes` and `inference`; 0, without a number: the U-Net is segdist.unet:UNet."""


def stamped(values: dict[str, Any], version: int) -> dict[str, Any]:
    """`values` with their format version in front."""
    return {VERSION_KEY: version, **values}


def read_version(values: Any, newest: int, origin: str) -> int:
    """The format version of what was read; 0 for files from the time before they had one.

    Args:
        values: the content, a JSON object.
        newest: the version that this program writes.
        origin: the file, for the message.

    Raises:
        UserError: the content is no object, its version is no number, or a later program wrote it.
    """
    if not isinstance(values, dict):
        raise UserError(f"{origin}: damaged: it holds {type(values).__name__}, not an object")
    version = values.get(VERSION_KEY, 0)
    if not isinstance(version, int) or isinstance(version, bool) or version < 0:
        raise UserError(f"{origin}: damaged: its format version is {version!r}")
    if version > newest:
        raise UserError(
            f"{origin}: format version {version}, written by a later segdist; this one reads versions up to {newest}: "
            "update it (pip install --upgrade segdist)"
        )
    return version


def unstamped(values: Any, newest: int, origin: str) -> dict[str, Any]:
    """`values` without their format version, once `read_version` has passed it."""
    read_version(values, newest, origin)
    return {key: value for key, value in values.items() if key != VERSION_KEY}
