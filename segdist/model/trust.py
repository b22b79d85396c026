"""Which factories a model file may name. Loading a model imports and calls its factory, which can run any code.

segdist's own are trusted, and so are those that this user has trained with: they were typed, not read from a file.
The latter are listed in `factories.jsonl` in the user's config folder, one object per line:
    {"format_version": 1, "factory": "monai.networks.nets:UNet"}
plus `folder`, if the factory was found in the folder where training was started.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from segdist.core.errors import UserError
from segdist.core.formats import VERSION_KEY, stamped
from segdist.core.paths import config_folder
from segdist.model.config import UNET

FORMAT = 1
OWN = (UNET,)


def require_trust(factory: str, model_file: Path, trusted: Sequence[str] = ()) -> list[str]:
    """Refuse the factory that a model file names, unless it is trusted.

    Args:
        trusted: factories `package.module:callable`, or modules `package.module`, that this call trusts.

    Returns:
        Folders to search for its module if it isn't installed; the current one only for factories in `trusted`.

    Raises:
        UserError: the factory is not trusted; the message says how to trust it.
    """
    module = factory.partition(":")[0]
    noted = _noted()
    if factory in trusted or module in trusted:
        return [*noted.get(factory, []), os.curdir]
    if factory in OWN or factory in noted:
        return noted.get(factory, [])
    raise UserError(
        f"{model_file}: loading this model would import and call {factory}, and a model file from elsewhere can name "
        "any code on this machine. If you trust the file and that module, add "
        f"--trust-factory {module} (in Python trust_factory={module!r}). Factories that you have trained with are "
        f"already trusted; they are listed in {_file()}"
    )


def note_trained_with(factory: str) -> None:
    """Remember that this user trains with `factory`: its models load without --trust-factory from now on."""
    noted, folder = _noted(), _current_folder_of(factory)
    if factory in OWN or (factory in noted and (not folder or folder in noted[factory])):
        return
    line = json.dumps(stamped({"factory": factory} | ({"folder": folder} if folder else {}), FORMAT)) + "\n"
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        with _file().open("a") as file:
            file.write(line)
    except OSError as error:
        # Imported here, because `segdist.predict` loads this module and must not wait for rich.
        from segdist.core.terminal import warn

        module = factory.partition(":")[0]
        warn(
            f"{_file()}: can't be written ({error.strerror}); inference will require --trust-factory {module}, "
            "unless XDG_CONFIG_HOME names a writable folder"
        )


def _file() -> Path:
    return config_folder() / "factories.jsonl"


def _current_folder_of(factory: str) -> str:
    """The current folder if it contains the factory's module; else empty, as for installed packages."""
    package = sys.modules.get(factory.partition(":")[0].partition(".")[0])
    file = getattr(package, "__file__", None) or next(iter(getattr(package, "__path__", [])), None)
    if file is None:
        return ""
    place = Path(file).parent.parent if Path(file).name == "__init__.py" else Path(file).parent
    return os.getcwd() if place.resolve() == Path.cwd() else ""


def _noted() -> dict[str, list[str]]:
    """The listed factories with their folders, newest first. Malformed lines are skipped, so they trust nothing."""
    noted: dict[str, list[str]] = {}
    try:
        lines = _file().read_text(errors="replace").splitlines()
    except OSError:
        return noted
    for line in lines:
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and values.get(VERSION_KEY) == FORMAT and isinstance(values.get("factory"), str):
            folders = noted.setdefault(values["factory"], [])
            if isinstance(values.get("folder"), str):
                folders.insert(0, values["folder"])
    return noted
