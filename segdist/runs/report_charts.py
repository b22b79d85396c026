"""Line charts as plain geometry; the report's template draws them as inline SVG.

No colors here: lines are numbered, and the style sheet defines their look in light mode, dark mode and print. Lines
also differ in their dashes, so no one has to tell colors apart.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 640.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 78.0, 26.0, 14.0, 56.0
"""Margins for the axis labels, in units of the SVG's view box."""
STYLES = 6
"""Colors and dashes in the style sheet: 36 different combinations."""
MOST_POINTS = 400
"""Number of points in a line above which neighbors are averaged: more than two per unit of width wouldn't be
visible."""
LOG_FROM = 50.0
"""Ratio of highest to lowest value at which an axis becomes logarithmic, if allowed."""


@dataclass(frozen=True)
class Series:
    """A line to draw: (x, y) ordered by x; y can be None for a missing number."""

    label: str
    points: Sequence[tuple[float, float | None]]


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: position in the view box, and its text."""

    position: float
    text: str


@dataclass(frozen=True)
class Line:
    """A drawn series: SVG path data and its legend."""

    label: str
    path: str
    color: int
    dash: int
    last: str
    single: tuple[float, float] | None
    """The point of a single-point series, which a path wouldn't show."""


@dataclass(frozen=True)
class Chart:
    """Everything that the template needs to draw a chart."""

    title: str
    x_label: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    marks: list[Tick]
    """Vertical lines that mark events."""
    description: str
    """Text description for screen readers."""


def make_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "step",
    marks: Sequence[tuple[float, str]] = (),
    log: bool = False,
) -> Chart | None:
    """Lay out a chart; None if there is nothing to draw.

    Args:
        marks: x positions of vertical lines, with their meaning.
        log: use a logarithmic y axis if the values span a wide range and are above 0.
    """
    known = [(x, y) for line in series for x, y in line.points if y is not None]
    if not known:
        return None
    low_x, high_x = min(x for x, _ in known), max(x for x, _ in known)
    low, high = min(y for _, y in known), max(y for _, y in known)
    # Below the smallest normal number, a power of ten may be 0.
    logarithmic = log and low >= sys.float_info.min and high / low > LOG_FROM
    y_values = _log_ticks(low, high) if logarithmic else nice_ticks(low, high)
    low, high = min(low, y_values[0]), max(high, y_values[-1])

    def place_x(x: float) -> float:
        return LEFT + (x - low_x) / ((high_x - low_x) or 1) * (WIDTH - LEFT - RIGHT)

    def place_y(y: float) -> float:
        if logarithmic:
            share = (math.log10(y) - math.log10(low)) / (math.log10(high) - math.log10(low))
        else:
            share = (y - low) / ((high - low) or 1)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    lines = []
    for number, line in enumerate(series):
        points = thinned(line.points)
        placed = [None if y is None else (place_x(x), place_y(y)) for x, y in points]
        there = [point for point in placed if point is not None]
        last = next((y for _, y in reversed(line.points) if y is not None), None)
        lines.append(
            Line(
                label=line.label,
                path=_path(placed),
                color=number % STYLES,
                dash=(number + number // STYLES) % STYLES,
                last="" if last is None else short(last),
                single=there[0] if len(there) == 1 else None,
            )
        )
    summaries = [f"{line.label}: last {line.last}" for line in lines if line.last]
    return Chart(
        title=title,
        x_label=x_label,
        lines=lines,
        x_ticks=[Tick(place_x(x), short(x)) for x in nice_ticks(low_x, high_x, inside=True)],
        y_ticks=[Tick(place_y(y), short(y)) for y in y_values],
        marks=[Tick(place_x(x), text) for x, text in marks if low_x <= x <= high_x],
        description=f"{title} over {x_label} {short(low_x)} to {short(high_x)}. " + "; ".join(summaries),
    )


def nice_ticks(low: float, high: float, wanted: int = 5, *, inside: bool = False) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) that cover [low, high], or with `inside`, are within it."""
    raw = (high - low) / wanted
    # A single value, or values too close for ticks to separate.
    if not raw > max(sys.float_info.min, 1e-13 * max(abs(low), abs(high))):
        return [low] if inside else [low, low + (abs(low) or 1)]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    tolerance = 1e-9 * (high - low) / step  # 0.30000000000000004 / 0.1 must not become another tick
    if inside:
        first, last = math.ceil(low / step - tolerance), math.floor(high / step + tolerance)
    else:
        first, last = math.floor(low / step + tolerance), math.ceil(high / step - tolerance)
    return [number * step for number in range(first, last + 1)]


def thinned(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """At most `MOST_POINTS` points, each the mean of its neighbors; a gap remains if a whole group has no number."""
    groups = min(len(points), MOST_POINTS)
    thin: list[tuple[float, float | None]] = []
    for group in range(groups):
        part = points[group * len(points) // groups : (group + 1) * len(points) // groups]
        values = [y for _, y in part if y is not None]
        thin.append((part[-1][0], sum(values) / len(values) if values else None))
    return thin


def short(value: float) -> str:
    """A number in few characters: 0.25, 12000 → 12k, 0.00003 → 3e-5."""
    for limit, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= limit:
            return f"{value / unit:.4g}{letter}"
    mantissa, exponential, exponent = f"{value:.4g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponential else mantissa


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten that cover [low, high], at most about seven of them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = -(-(last - first) // 6)
    return [10.0**power for power in range(first, last + stride, stride)]


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    commands = []
    pen_down = False
    for point in points:
        if point is not None:
            commands.append(f"{'L' if pen_down else 'M'}{point[0]:.1f} {point[1]:.1f}")
        pen_down = point is not None
    return "".join(commands)
