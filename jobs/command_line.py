"""A job's config from its defaults, a TOML file and the command line, in increasing order of precedence."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Generic, TypeVar

import tyro

from segdist.core.json_values import JsonObject
from segdist.core.parsing import from_dict, merge, option_value, read_settings, to_dict
from segdist.core.ranges import check_ranges

if TYPE_CHECKING:
    from segdist.ranks.launchers import RankEnvironment

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class Command(Generic[Config]):
    """A parsed command: the job's config, and whether to only check it and show the plan."""

    job: Config
    dry_run: bool


def parse(
    cls: type[Config],
    argv: list[str] | None,
    command: str,
    description: str,
    preset: str = "",
    preset_values: JsonObject | None = None,
) -> Command[Config]:
    """Parse `argv` (default: the process's) into `cls`, a tree of frozen dataclasses.

    Order of precedence: command line, `--config FILE`, the preset's values, the class's defaults. A job with presets
    has an option `--preset`, whose value the caller has already looked up. A config with a method `validate` is checked
    at the end, so a wrong value in the file can be corrected on the command line.

    Raises:
        UserError: an unknown key or a wrong type in the file; a refused combination.
        SystemExit: `--help` (0), or arguments that can't be parsed (2, the message is on standard error).
    """
    arguments = sys.argv[1:] if argv is None else argv
    default = from_dict(cls, preset_values or {}, f"preset {preset}")
    config_file = option_value(arguments, "--config")
    if config_file is not None:
        values = merge(preset_values or {}, read_settings(Path(config_file)))
        default = from_dict(cls, values, config_file)
    options: list[tuple[str, object] | tuple[str, object, object]] = [
        ("job", Annotated[cls, tyro.conf.arg(name="")]),
        ("config", Annotated[Path | None, tyro.conf.arg(help="TOML file with any of these settings.")], None),
        ("dry_run", Annotated[bool, tyro.conf.arg(help="Check everything, print config and plan, stop.")], False),
    ]
    if preset:
        help_text = "Named settings to start from, or a TOML file of your own."
        options.append(("preset", Annotated[str, tyro.conf.arg(help=help_text)], preset))
    form = dataclasses.make_dataclass(command, options)
    parsed = tyro.cli(
        form,
        args=arguments,
        default=form(job=default),
        prog=f"segdist {command}",
        description=description,
    )
    _check(parsed.job)
    return Command(parsed.job, parsed.dry_run)


def parse_options(cls: type[Config], argv: list[str] | None, command: str, description: str) -> Config:
    """As `parse`, but for commands that only show something: no `--config` and no `--dry-run`."""
    config = tyro.cli(cls, args=argv, prog=f"segdist {command}", description=description)
    _check(config)
    return config


def _check(config: object) -> None:
    check_ranges(config)
    validate = getattr(config, "validate", None)
    if validate is not None:
        validate()


def launch_command(job: str, arguments: Sequence[str], environment: "RankEnvironment") -> list[str]:
    """The command that starts a job again on the same number of ranks, whatever launcher started it this time."""
    ranks, local = environment.world_size, environment.local_world_size
    if ranks == 1:
        return ["segdist", job, *arguments]
    where = ["--standalone"]
    if ranks > local:
        where = [f"--nnodes={-(-ranks // local)}", "--rdzv-backend=c10d", "--rdzv-endpoint=HOST:29500"]
    return ["torchrun", *where, f"--nproc-per-node={local}", f"jobs/{job}.py", *arguments]


def print_config(config: object) -> None:
    """Print the resolved config as `key = value` lines, with a dot after section names."""

    def show(values: JsonObject, prefix: str) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                show(value, f"{prefix}{key}.")
            else:
                print(f"  {prefix}{key} = {value!r}")

    print("config:")
    show(to_dict(config), "")
