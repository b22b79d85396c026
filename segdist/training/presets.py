"""Named settings to start a training from: the files in `presets/`, or a TOML file of the user's."""

from pathlib import Path
from typing import Any

from segdist.core.errors import UserError
from segdist.core.parsing import option_value, read_file
from segdist.training.choices import MINUTES

PRESETS = Path(__file__).resolve().parent / "presets"
AUTO, PAPER = "auto", "paper"


def find_preset(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """Name and settings of the preset that a command line asks for.

    Where it asks for none: `PAPER` with a number of epochs in the config file or on the command line, as in the
    published command, else `AUTO`, whose settings but for the length are chosen when the data and the device are known
    (`segdist.training.facts`). A preset's own length gives way to one in epochs or minutes.

    Raises:
        UserError: there is no such preset; a length in epochs and in minutes.
    """
    epochs, minutes = _gives(arguments, "epochs", "-e"), _gives(arguments, "minutes")
    if epochs and minutes:
        raise UserError("--epochs and --minutes: give the length of the training in one of them")
    name = option_value(arguments, "--preset") or (PAPER if epochs else AUTO)
    if name == AUTO:
        length = epochs or minutes or _gives(arguments, "steps")
        return name, {} if length else {"minutes": MINUTES}
    values = preset_values(name)
    if epochs or minutes:
        values.pop("steps", None)
    return name, values


def preset_values(name: str) -> dict[str, Any]:
    """The settings in a preset's file. Raises UserError where there is none of that name."""
    path = Path(name) if name.endswith(".toml") else PRESETS / f"{name}.toml"
    if not path.is_file():
        known = ", ".join([AUTO, *sorted(preset.stem for preset in PRESETS.glob("*.toml"))])
        raise UserError(f"--preset {name}: choose one of {known}, or give a .toml file")
    return read_file(path)


def paper_because_of_epochs(arguments: list[str]) -> bool:
    """True if the command line means `PAPER` without saying so."""
    return option_value(arguments, "--preset") is None and _gives(arguments, "epochs", "-e")


def _gives(arguments: list[str], setting: str, short: str = "") -> bool:
    """True if a setting is on the command line or in the config file."""
    config_file = option_value(arguments, "--config")
    flags = {argument.partition("=")[0] for argument in arguments}
    return bool(flags & {f"--{setting}", short}) or (
        config_file is not None and setting in read_file(Path(config_file))
    )
