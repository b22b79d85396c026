"""The report: one self-contained HTML file about a run, or comparing several."""

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from segdist.core.errors import UserError
from segdist.core.files import whole_file
from segdist.core.json_values import JsonObject
from segdist.core.paths import COMPARISON, REPORT
from segdist.core.shipped import shipped_files
from segdist.core.terminal import clock, say, warn
from segdist.runs import report_charts as charts
from segdist.runs import report_data as data
from segdist.runs.record import Predictions, RunRecord, read_run

MOST_IMAGES = 200
"""Maximum rows in the table of images; the rest are in scores.json."""


def write_report(folders: Sequence[Path], out: Path | None = None, figures: int = 20) -> Path:
    """Write the report of a run folder or a folder of predictions, or a comparison of several.

    Args:
        out: the file; default: `report.html` in the folder, or `comparison.html` next to the first of several.
        figures: maximum number of figures of test images per set of predictions, worst first.

    Returns:
        The file, written atomically.

    Raises:
        UserError: a folder holds no run, its files are damaged, or a folder was given twice.
    """
    # Imported here, because nothing else in segdist needs it.
    from jinja2 import DictLoader, Environment, StrictUndefined

    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("the same run was given twice; a comparison needs different runs")
    runs = [read_run(folder) for folder in folders]
    comparing = len(runs) > 1
    target = out or (folders[0].resolve().parent / COMPARISON if comparing else folders[0] / REPORT)
    if target.is_dir():
        raise UserError(
            f"--out {target}: is a folder; name a file in it, such as {target / (COMPARISON if comparing else REPORT)}"
        )
    templates = DictLoader(shipped_files("segdist.runs", "templates", ".j2"))
    environment = Environment(loader=templates, autoescape=True, undefined=StrictUndefined)
    html = environment.get_template("report.html").render(
        title=" · ".join(_names(runs)),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        page=None if comparing else _page(runs[0], figures),
        comparison=_comparison(runs) if comparing else None,
        clock=clock,
        **{name.lower(): getattr(charts, name) for name in ("WIDTH", "HEIGHT", "LEFT", "RIGHT", "TOP", "BOTTOM")},
    )
    with whole_file(target) as file:
        file.write(html.encode())
    return target


def refresh_report(folder: Path, *, quiet: bool = False) -> None:
    """Write the report at the end of a job; since the results are already safe, a failure here is only a warning."""
    try:
        target = write_report([folder])
    except Exception as error:  # a full disk or an unreadable picture, for example, shouldn't fail the job
        again = f"segdist report {shlex.quote(str(folder))}"
        warn(f"the report could not be written ({type(error).__name__}: {error}); try: {again}")
        return
    if not quiet:
        say(f"report: {target}")


def _page(run: RunRecord, most_figures: int) -> data.TemplateValues:
    timings = data.timings(run)
    total = sum(seconds for _, seconds in timings)
    description = run.description
    page: data.TemplateValues = {
        "state": run.state() if description else "predictions",
        "resumes": run.resumes,
        "skipped": run.skipped_steps,
        "headline": data.headline(run),
        "charts": data.learning_curves(run),
        "folds": data.fold_table(run),
        "class_table": data.class_table(run),
        "validated": run.best is not None,
        "scored": data.scored_images(run),
        "matrices": data.matrices(run),
        "predictions": [_predictions(run, item, most_figures) for item in run.predictions],
        "data_sets": data.data_sets(run),
        "timings": [(name, seconds, seconds / total) for name, seconds in timings],
        "rank_times": data.rank_times(run),
        "ranks": len(run.summary.get("rank_seconds", [])),
        "inference": [_start_of_inference(item, start) for item in run.predictions for start in item.starts],
        "events": [_event(event) for event in run.events],
        "settings": data.settings(run.config),
        "command": shlex.join(description.get("command", [])),
        "code": description.get("code", "unknown"),
        "versions": ", ".join(f"{name} {version}" for name, version in description.get("versions", {}).items()),
        "precision": description.get("precision", "unknown"),
        "cpu": description.get("cpu_capability", "CPU unknown"),
    }
    page["sections"] = [
        ("folds", "Cross-validation", page["folds"]),
        ("curves", "Learning curves", page["charts"]),
        ("classes", "Classes", page["class_table"]),
        ("confusion", "Confusion", page["matrices"]),
        *((f"images{number}", f"Images: {item['label']}", True) for number, item in enumerate(page["predictions"], 1)),
        ("data", "Data", page["data_sets"]),
        ("time", "Time", page["timings"] or page["events"] or page["inference"]),
        ("again", "Reproduce this run", page["settings"]),
    ]
    return page


def _predictions(run: RunRecord, item: Predictions, most_figures: int) -> data.TemplateValues:
    images = data.worst_first(item)
    return {
        "label": item.folder.resolve().name,
        "folder": item.folder,
        "classes": item.scores["classes"],
        "images": images[:MOST_IMAGES],
        "left_out": len(images[MOST_IMAGES:]),
        "figures": data.figures(item, most_figures),
        "reliability": data.reliability(item),
        "suspects": data.suspects(item),
    }


def _start_of_inference(item: Predictions, start: JsonObject) -> tuple[str, str, str, str, str]:
    images = f"{start['images'] - start['reused']:,}"
    return _when(start), item.folder.resolve().name, images, clock(start["seconds"]), data.where(start)


def _when(event: JsonObject) -> str:
    return datetime.fromtimestamp(event["time"], UTC).strftime("%Y-%m-%d %H:%M:%S")


def _event(event: JsonObject) -> tuple[str, str, int, str]:
    when, where = _when(event), data.where(event)
    what = f"{event['skipped']} steps skipped so far" if event["what"] == "skipped_steps" else event["what"]
    return when, what, event["step"], where


def _comparison(runs: Sequence[RunRecord]) -> data.TemplateValues:
    names = _names(runs)
    scored = [_scores(run) for run in runs]
    table = []
    for label in dict.fromkeys(label for scores in scored for label in scores):
        values = [scores.get(label) for scores in scored]
        highest = max((value for value in values if value is not None), default=None)
        winners = [value is not None and value == highest for value in values]
        # On a complete tie, there is no winner.
        cells = [(data.number(v), won and not all(winners)) for v, won in zip(values, winners, strict=True)]
        table.append((label, cells))
    seconds = [run.summary.get("seconds") for run in runs]
    table += [
        ("steps", [(f"{run.step:,}", False) for run in runs]),
        ("training time", [("–" if value is None else clock(value), False) for value in seconds]),
    ]
    return {
        "names": names,
        "states": [run.state() if run.description else "predictions" for run in runs],
        "table": table,
        "charts": data.comparison_curves(runs, names),
        "differences": data.differences(runs),
    }


def _scores(run: RunRecord) -> dict[str, float | None]:
    scores: dict[str, float | None] = {}
    if best := run.best:
        scores["best validation mean IoU"] = best["mean_iou"]
    for item in run.predictions:
        label = item.folder.resolve().name
        scores[f"mean IoU over images ({label})"] = item.scores["mean_iou_over_images"]
        scores[f"mean IoU over pixels ({label})"] = item.scores["mean_iou_pixels"]
        for name, value in zip(item.scores["classes"], item.scores["iou"], strict=True):
            scores[f"IoU {name} ({label})"] = value
    return scores


def _names(runs: Sequence[RunRecord]) -> list[str]:
    """Names that tell the runs apart: the folders' names, or full paths if those are equal."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]
