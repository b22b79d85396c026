"""Find image files in folders. Names are compared as they look, and files left by the system are ignored."""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from segdist.core.errors import UserError
from shards.images.opening import IMAGE_SUFFIXES, ZARR_SUFFIX, split_address

SYSTEM_FOLDERS = {"@eadir", "__macosx", "#recycle", "#snapshot", "$recycle.bin", "lost+found", "thumbs.db"}
"""Lower-case names of files left by Synology, macOS, Windows and file systems; a leading dot also hides a file."""


def composed(name: str) -> str:
    """The name in Unicode's composed form (NFC): macOS writes `ü` as two characters, most other systems as one."""
    return unicodedata.normalize("NFC", name)


def is_hidden(name: str) -> bool:
    """True for system files and folders, which are never data: `.ipynb_checkpoints`, `._a.png`, `@eaDir`, `__MACOSX`,
    …"""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def is_image_name(name: str) -> bool:
    """True if the suffix is that of an image and the file isn't hidden."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(name)


def name_of(place: Path) -> str:
    """The name of a file in mask rules: its path in its folder, without suffix, in composed form."""
    return composed(place.with_name(place.stem).as_posix())


def images_in(folder: Path, pattern: str = "**/*", *, skip_unreadable: bool = False) -> list[Path]:
    """The images in `folder` whose paths in it match `pattern`, sorted. Zarr images are folders.

    `*.png` searches the folder itself; `**/*.png` also searches subfolders, including linked ones, each once. A name is
    matched literally before it is read as a pattern, so `[x=0,y=0].png` can name a file.

    With `skip_unreadable`, an unreadable subfolder is listed itself, so that opening it reports the error.

    Raises:
        UserError: an unreadable folder.
    """
    wanted = composed(pattern).split("/")
    walk = _walk(folder, len(wanted) > 1, skip_unreadable, set())
    found = [(path, composed(path.relative_to(folder).as_posix())) for path in walk]
    exact = [path for path, name in found if name == composed(pattern)]
    return sorted(exact or [path for path, name in found if _fits(name.split("/"), wanted)])


def hidden_below(path: str, fixed: str) -> bool:
    """True if a component of `path` below the folder `fixed` is hidden."""
    return any(is_hidden(part) for part in Path(os.path.relpath(path, fixed or ".")).parts if part != "..")


def existing(path: Path) -> Path:
    """`path`, or the existing file with the same name in another Unicode form; `path` itself if there is none."""
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
            # Folders before links to them, so that a folder reachable in two ways goes by its own name.
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
    """True if the components of a path match those of a pattern, in which `**` means any number of folders."""
    if not wanted:
        return not parts
    if wanted[0] == "**":
        return _fits(parts, wanted[1:]) or (bool(parts) and _fits(parts[1:], wanted))
    return bool(parts) and fnmatchcase(parts[0], wanted[0]) and _fits(parts[1:], wanted[1:])
