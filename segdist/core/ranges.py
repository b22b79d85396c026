"""Ranges of settings: the type of each number in a config says which values are allowed.

    lr: Positive = 0.01
    milestones: tuple[InsideShare, ...] = (0.5, 0.75)

`check_ranges` finds the first value outside its range, before anything is read. Neither pydantic nor tyro checks these
ranges, so a wrong value in a file can be corrected on the command line.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Union, get_args, get_origin, get_type_hints

from segdist.core.errors import UserError


@dataclass(frozen=True)
class Range:
    """The finite numbers from `low` to `high`, including or excluding the ends."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    """Exclude `low` itself."""
    below: bool = False
    """Exclude `high` itself."""

    def __contains__(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        return (value > self.low if self.above else value >= self.low) and (
            value < self.high if self.below else value <= self.high
        )

    def __str__(self) -> str:
        bounds = []
        if math.isfinite(self.low):
            bounds.append(f"{'above' if self.above else 'at least'} {_text(self.low)}")
        if math.isfinite(self.high):
            bounds.append(f"{'below' if self.below else 'at most'} {_text(self.high)}")
        return f"must be {' and '.join(bounds)}" if bounds else "must be a number"


Count = Annotated[int, Range(1)]
"""1, 2, 3 …"""
CountOrZero = Annotated[int, Range(0)]
"""0, 1, 2 …"""
Threads = Annotated[int, Range(0, 4096)]
"""CPU threads or processes; 0: chosen by the number of cores."""
Seed = Annotated[int, Range(0, 2**63 - 1)]
Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
"""From 0 to 1."""
PartialShare = Annotated[float, Range(0, 1, below=True)]
"""From 0 to below 1."""
InsideShare = Annotated[float, Range(0, 1, above=True, below=True)]
"""Above 0 and below 1."""
Factor = Annotated[float, Range(0, 1, above=True)]
"""Above 0, up to 1."""


def check_ranges(config: object, *, origin: str = "", section: str = "") -> None:
    """Refuse the first number of a config, a tree of dataclasses, that is outside its range.

    Args:
        origin: the file, if the settings are keys in a file and not flags.
        section: the config's position in a larger one, such as `tracking`.

    Raises:
        UserError: names flag (or file and key), value and range.
    """
    for path, value, allowed in _numbers(type(config), config):
        if value not in allowed:
            key = ".".join([section, *path] if section else path)
            where = f"{origin}: {key} = {value}" if origin else f"--{key.replace('_', '-')} {value}"
            raise UserError(f"{where}: {allowed}")


def without_range(cls: type) -> list[str]:
    """The numbers of a config class and its sections that have no range, by their dotted names; for tests."""
    found = []
    for name, hint in get_type_hints(cls, include_extras=True).items():
        if name not in cls.__dataclass_fields__:  # type: ignore[attr-defined]
            continue
        if dataclasses.is_dataclass(hint):
            found += [f"{name}.{inner}" for inner in without_range(hint)]  # type: ignore[arg-type]
        elif any(kind in (int, float) and allowed is None for kind, allowed in _leaves(hint)):
            found.append(name)
    return found


def _numbers(cls: type, config: object) -> Iterator[tuple[tuple[str, ...], float, Range]]:
    hints = get_type_hints(cls, include_extras=True)
    for item in dataclasses.fields(cls):
        value, hint = getattr(config, item.name), hints[item.name]
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            for path, inner, allowed in _numbers(type(value), value):
                yield (item.name, *path), inner, allowed
            continue
        ranges = [each for _, each in _leaves(hint) if each is not None]
        if not ranges or value is None:
            continue
        values = value if isinstance(value, tuple | list) else (value,)
        # A tuple of any length has one range; a tuple of fixed length has one for each item.
        for number, allowed in zip(
            values, ranges if len(ranges) == len(values) else ranges[:1] * len(values), strict=True
        ):
            yield (item.name,), number, allowed


def _leaves(hint: object) -> Iterator[tuple[object, Range | None]]:
    """The types inside a type, each with its range."""
    if get_origin(hint) is Annotated:
        inner, *extras = get_args(hint)
        allowed = next((extra for extra in extras if isinstance(extra, Range)), None)
        for kind, own in _leaves(inner):
            yield kind, own or allowed
    elif get_origin(hint) in (tuple, list, Union, UnionType):
        for part in get_args(hint):
            yield from _leaves(part)
    else:
        yield hint, None


def _text(value: float) -> str:
    return f"{value:g}" if abs(value) < 1e6 else f"{value:.0f}"
