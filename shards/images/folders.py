"""Image files in folders. Names are compared as people see them, and what systems leave in folders is nobody's data."""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from segdist.core.errors import UserError
from shards.images.opening import IMAGE_SUFFIXES, ZARR_SUFFIX, split_address

SYSTEM_FOLDERS = {"@eadir", "__macosx", "#recycle", "#snapshot", "$recycle.bin", "lost+found", "thumbs.db"}
"""Lower-case names of what Synology, macOS, Windows and file systems leave; what starts with a dot is hidden too."""


def composed(name: str) -> str:
    """The name in Unicode's composed form: a Mac writes `ü` as two characters, most other systems as one."""
    return unicodedata.normalize("NFC", name)


def is_hidden(name: str) -> bool:
    """True for files and folders that are nobody's data: `.ipynb_checkpoints`, `._a.png`, `@eaDir`, `__MACOSX`, …"""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def is_image_name(name: str) -> bool:
    """True where the suffix is that of an image and the file isn't hidden."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(name)


def name_of(place: Path) -> str:
    """What rules of mask names call a file: its place in its folder without suffix, in composed form."""
    return composed(place.with_name(place.stem).as_posix())


def images_in(folder: Path, pattern: str = "**/*", *, skip_unreadable: bool = False) -> list[Path]:
    """The images in `folder` whose places in it fit `pattern`, sorted. Zarr images are folders.

    `*.png` looks at the folder itself, `**/*.png` at folders inside as well, linked ones too, each once. A name is
    tried as it is before it is read as a pattern, so that `[x=0,y=0].png` names a file.

    With `skip_unreadable` a folder inside that may not be read is listed itself, so that whoever opens it is told.

    Raises:
        UserError: a folder that may not be read.
    """
    wanted = composed(pattern).split("/")
    walk = _walk(folder, len(wanted) > 1, skip_unreadable, set())
    found = [(path, composed(path.relative_to(folder).as_posix())) for path in walk]
    exact = [path for path, name in found if name == composed(pattern)]
    return sorted(exact or [path for path, name in found if _fits(name.split("/"), wanted)])


def hidden_below(path: str, fixed: str) -> bool:
    """True where a part of `path` behind the folder `fixed` is hidden."""
    return any(is_hidden(part) for part in Path(os.path.relpath(path, fixed or ".")).parts if part != "..")


def existing(path: Path) -> Path:
    """`path`, or the file that is there under the same name in another Unicode form; `path` itself where none is."""
    if path.exists() or path == path.parent:
        return path
    parent = existing(path.parent)
    if (parent / path.name).exists():
        return parent / path.name
    try:
        names = os.listdir(parent)
    except OSError:
        return path
    same = [name for name in names if composed(name) == composed(path.name)]
    return parent / same[0] if len(same) == 1 else path


def existing_address(address: Path) -> Path:
    """`existing` for a path or the address of a page in a file."""
    path, page = split_address(address)
    if address.exists() or not existing(path).exists() or path == address:
        return existing(address)
    return existing(path).with_name(f"{existing(path).name}#page={page}")


def _walk(folder: Path, below: bool, skip_unreadable: bool, seen: set[str]) -> Iterator[Path]:
    top = not seen
    seen.add(os.path.realpath(folder))
    try:
        with os.scandir(folder) as entries:
            # Folders before links to them: a folder that is reached in two ways has its own name.
            children = sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))
    except OSError as error:
        if top or not skip_unreadable:
            raise UserError(f"{folder}: this folder can't be read ({error.strerror})") from None
        yield folder
        return
    for entry in children:
        if is_hidden(entry.name):
            continue
        image = is_image_name(entry.name)
        if not entry.is_dir():
            if image and not entry.name.lower().endswith(ZARR_SUFFIX):
                yield folder / entry.name
        elif image and entry.name.lower().endswith(ZARR_SUFFIX):
            yield folder / entry.name
        elif below and os.path.realpath(entry.path) not in seen:
            yield from _walk(folder / entry.name, below, skip_unreadable, seen)


def _fits(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether the parts of a path fit those of a pattern, in which `**` stands for any number of folders."""
    if not wanted:
        return not parts
    if wanted[0] == "**":
        return _fits(parts, wanted[1:]) or (bool(parts) and _fits(parts[1:], wanted))
    return bool(parts) and fnmatchcase(parts[0], wanted[0]) and _fits(parts[1:], wanted[1:])
