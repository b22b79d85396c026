"""Presets, named starting points for training: the files in `presets/`, or a user's TOML file."""

from collections.abc import Collection
from pathlib import Path

from segdist.core.errors import UserError
from segdist.core.json_values import JsonObject
from segdist.core.parsing import option_value, parse_table, read_file
from segdist.core.shipped import shipped_files
from segdist.training.choices import MINUTES

AUTO, PAPER = "auto", "paper"


def find_preset(arguments: list[str]) -> tuple[str, JsonObject]:
    """Name and settings of the preset for a command line; see `choose_preset`."""
    lengths = {"epochs": "-e", "minutes": "", "steps": ""}
    given = [setting for setting, short in lengths.items() if _gives(arguments, setting, short)]
    return choose_preset(option_value(arguments, "--preset") or "", given)


def choose_preset(name: str, given: Collection[str]) -> tuple[str, JsonObject]:
    """Name and settings of the preset `name`, or of the default preset if `name` is empty.

    The default is `PAPER` if a number of epochs is given, as in the published command, otherwise `AUTO`, whose settings
    except the length are chosen once the data and the device are known (`segdist.training.facts`). Epochs or minutes
    override a preset's own length.

    Args:
        given: the settings given by the user; only `epochs`, `minutes` and `steps` matter.

    Raises:
        UserError: no such preset; a length in both epochs and minutes.
    """
    epochs, minutes = "epochs" in given, "minutes" in given
    if epochs and minutes:
        raise UserError("--epochs and --minutes: give the length of the training in only one of them")
    name = name or (PAPER if epochs else AUTO)
    if name == AUTO:
        return name, {} if epochs or minutes or "steps" in given else {"minutes": MINUTES}
    values = preset_values(name)
    if epochs or minutes:
        values.pop("steps", None)
    return name, values


def preset_values(name: str) -> JsonObject:
    """The settings in a preset's file. Raises UserError if there is no such preset."""
    if name.endswith(".toml") and Path(name).is_file():
        return read_file(Path(name))
    presets = shipped_files("segdist.training", "presets", ".toml")
    if name not in presets:
        raise UserError(f"--preset {name}: choose one of {', '.join([AUTO, *presets])}, or give a .toml file")
    return parse_table(presets[name], f"preset {name}")


def paper_because_of_epochs(arguments: list[str]) -> bool:
    """True if the command line selects `PAPER` by giving epochs and no preset."""
    return option_value(arguments, "--preset") is None and _gives(arguments, "epochs", "-e")


def _gives(arguments: list[str], setting: str, short: str = "") -> bool:
    """True if the command line or its config file gives a setting."""
    config_file = option_value(arguments, "--config")
    flags = {argument.partition("=")[0] for argument in arguments}
    return bool(flags & {f"--{setting}", short}) or (
        config_file is not None and setting in read_file(Path(config_file))
    )
