"""Named settings to start a training from: the files in `presets/`, or a TOML file of the user's."""

from pathlib import Path
from typing import Any

from segdist.core.errors import UserError
from segdist.core.parsing import option_value, read_file

PRESETS = Path(__file__).resolve().parent / "presets"
DEFAULT = "paper"


def find_preset(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """Name and settings of the preset that a command line asks for, `DEFAULT` where it asks for none.

    A preset's number of steps gives way to a number of epochs in the config file or on the command line.

    Raises:
        UserError: there is no such preset.
    """
    name = option_value(arguments, "--preset") or DEFAULT
    path = Path(name) if name.endswith(".toml") else PRESETS / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.toml")))
        raise UserError(f"--preset {name}: choose one of {known}, or give a .toml file")
    values = read_file(path)
    config_file = option_value(arguments, "--config")
    flags = {argument.partition("=")[0] for argument in arguments}
    if flags & {"-e", "--epochs"} or (config_file is not None and "epochs" in read_file(Path(config_file))):
        values.pop("steps", None)
    return name, values
