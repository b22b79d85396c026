"""The status of runs, from their files: text for a terminal, also over ssh."""

import time
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from segdist.core.terminal import clock
from segdist.runs.record import RunRecord

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 40
"""Width of a sparkline in characters."""
NODE_SILENT_AFTER = 60.0
"""Seconds without a heartbeat after which a node counts as silent."""
MOST_NODES = 8
"""Maximum number of nodes with their own line."""
STATE_STYLES = {
    "running": "green",
    "finished": "bold green",
    "stopped": "yellow",
    "silent": "red",
    "failed": "bold red",
}


def sparkline(values: Sequence[float | None], width: int = WIDTH) -> str:
    """A curve in one line of text: lowest value ▁, highest █; None (no number) is a gap.

    Values that share a character are averaged.
    """
    cells: list[float | None] = []
    for cell in range(min(width, len(values))):
        first, end = cell * len(values) // min(width, len(values)), (cell + 1) * len(values) // min(width, len(values))
        numbers = [value for value in values[first:end] if value is not None]
        cells.append(sum(numbers) / len(numbers) if numbers else None)
    known = [value for value in cells if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    # Divide first: numbers close to 0 have a spread whose reciprocal is infinite.
    span = high - low or 1.0
    return "".join(" " if value is None else BARS[round((value - low) / span * (len(BARS) - 1))] for value in cells)


def remaining_seconds(run: RunRecord) -> float | None:
    """Time to the end at the pace of the last rows, including validation; None if unknown."""
    rows = run.train[-20:]
    if run.steps is None or len(rows) < 2 or rows[-1]["step"] == rows[0]["step"]:
        return None
    seconds: float = rows[-1]["time"] - rows[0]["time"]
    return max(run.steps - run.step, 0) * seconds / float(rows[-1]["step"] - rows[0]["step"])


def overview(runs: Sequence[RunRecord], now: float | None = None) -> RenderableType:
    """One line per run, followed by the reasons for unreadable folders."""
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "state", "step", "best mean IoU", "last", "mean IoU"):
        table.add_column(heading, justify="right" if heading in ("step", "best mean IoU", "last") else "left")
    for run in runs:
        best = run.best
        table.add_row(
            run.name,
            _state_text(run, now),
            f"{run.step}/{run.steps or '?'}",
            _number(best["mean_iou"] if best else None),
            _number(run.val[-1]["mean_iou"] if run.val else None),
            sparkline([row["mean_iou"] for row in run.val], 20),
        )
    return Group(table, *(Text(run.problem, "red") for run in runs if run.problem))


def status(run: RunRecord, now: float | None = None) -> RenderableType:
    """A run in about fifteen lines; predictions outside a run in one."""
    scored = [
        Text(f"{item.folder}: mean IoU over images {_number(item.scores['mean_iou_over_images'])}")
        for item in run.predictions
    ]
    if scored and not run.description:
        return Group(*scored)
    head = Text.assemble((str(run.folder), "bold"), "  ", _state_text(run, now))
    left = remaining_seconds(run)
    facts = [f"step {run.step}/{run.steps or '?'}"]
    if run.epoch:
        facts.append(f"epoch {run.epoch}")
    if run.state(now) == "running" and left is not None:
        facts.append(f"{clock(left)} left")
    if run.resumes:
        facts.append(f"resumes: {run.resumes}")
    if run.skipped_steps:
        facts.append(f"skipped steps: {run.skipped_steps}")
    parts: list[RenderableType] = [head, Text("  ".join(facts))]
    if run.state(now) in ("running", "silent"):
        parts += _nodes(run, time.time() if now is None else now)
    if run.train or run.val:
        parts += [Text(), _curves(run)]
    if run.val:
        parts += [Text(), _classes(run)]
    return Group(*parts, *scored)


def _nodes(run: RunRecord, now: float) -> list[RenderableType]:
    """One line per node, lagging or silent ones first; with many nodes, only these and a summary."""
    if not run.nodes:
        return []
    front = max(node["step"] for node in run.nodes)
    lines = []
    for node in run.nodes:
        age = now - node["time"]
        silent = age > NODE_SILENT_AFTER
        ranks = f"{len(node['ranks'])} rank{'s' * (len(node['ranks']) > 1)}"
        words = f"  {node['node']}: {ranks}, step {node['step']}, {node['doing']}, {clock(age)} ago"
        lines.append((not silent, node["step"], Text(words + (", silent" if silent else ""), "red" if silent else "")))
    lines.sort(key=lambda line: line[:2])
    shown: list[RenderableType] = [line[2] for line in lines[:MOST_NODES]]
    if len(lines) > MOST_NODES:
        shown.append(Text(f"  and {len(lines) - MOST_NODES} more nodes, up to step {front}"))
    return shown


def _slowest(run: RunRecord) -> str:
    """The slowest rank, and the median of all."""
    last = run.train[-1] if run.train else {}
    return f"rank {last['slowest_rank']}; median {last['rank_s_median']:.3g}" if "slowest_rank" in last else ""


def _curves(run: RunRecord) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for name in ("figure", "now", "best", "curve"):
        table.add_column(name, justify="right" if name == "now" else "left")
    best = run.best
    noted = f"best {best['mean_iou']:.4f} at step {best['step']}" if best else ""
    wanted = [
        ("mean IoU", run.val, "mean_iou", "{:.4f}", noted),
        ("validation loss", run.val, "loss", "{:.4f}", ""),
        ("training loss", run.train, "loss", "{:.4f}", ""),
        ("learning rate", run.train, "lr", "{:.2g}", ""),
        ("gradient norm", run.train, "grad_norm", "{:.3g}", ""),
        ("samples/s", run.train, "samples_per_s", "{:.0f}", ""),
        ("waiting for data", run.train, "data_wait", "{:.1%}", ""),
        ("slowest rank, s", run.train, "rank_s_max", "{:.3g}", _slowest(run)),
        ("memory, MB", run.train, "memory_mb", "{:.0f}", ""),
    ]
    for label, rows, key, form, note in wanted:
        values = [row.get(key) for row in rows]
        if any(value is not None for value in values):
            now = "–" if values[-1] is None else form.format(values[-1])
            table.add_row(label, now, note, Text(sparkline(values), "cyan"))
    return table


def _classes(run: RunRecord) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("class", "IoU", "Dice", "IoU so far"):
        table.add_column(heading, justify="right" if heading in ("IoU", "Dice") else "left")
    last = run.val[-1]
    for index, name in enumerate(run.classes):
        curve = Text(sparkline([row["iou"][index] for row in run.val]), "cyan")
        table.add_row(Text(name), _number(last["iou"][index]), _number(last["dice"][index]), curve)
    return table


def _state_text(run: RunRecord, now: float | None) -> Text:
    if run.problem:
        return Text("can't be read", "bold red")
    state = run.state(now)
    words = {"waiting": "nothing written yet", "silent": "silent: killed, suspended, or very slow"}.get(state, state)
    if run.last_sign is not None and state in ("running", "silent", "stopped"):
        age = (time.time() if now is None else now) - run.last_sign
        words += f", last sign of life {clock(age)} ago"
    return Text(words, STATE_STYLES.get(state, ""))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
