"""The contents of a report, as plain values for its template: no layout here.

K classes; confusion matrices are K x K, rows the truth.
"""

import base64
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from segdist.core.errors import UserError
from segdist.core.json_values import JsonObject
from segdist.core.paths import CALIBRATION, FIGURES, SUSPECT_PICTURES, SUSPECTS_TABLE
from segdist.core.terminal import clock
from segdist.runs.fold_table import fold_rows
from segdist.runs.record import Predictions, Row, RunRecord
from segdist.runs.report_charts import Chart, Series, make_chart
from shards.manifest import Manifest, read_manifest

TemplateValues = dict[str, Any]
"""Values for a template, which looks them up by name; mypy can't check templates."""

NOT_COMPARED = {"name", "quiet", "tracking", "checkpoint", "threads", "device"}
"""Settings left out of a comparison of runs, because they don't affect the result."""

CALIBRATION_FIGURES = ("expected_calibration_error", "brier", "nll")

MOST_RANKS = 16
"""Maximum number of ranks whose times are listed."""


@dataclass(frozen=True)
class Figure:
    """An image to show: its name, mean IoU, per-class IoU, and the picture as a data URI."""

    name: str
    score: float | None
    picture: str


@dataclass(frozen=True)
class Suspect:
    """A label that may be wrong: file, box and classes as text, and the picture as a data URI."""

    rank: int
    file: str
    box: str
    doubt: str
    picture: str


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix to show: counts and fractions of the truth's pixels, row by row."""

    title: str
    class_names: list[str]
    counts: list[list[int]]
    shares: list[list[float]]


@dataclass(frozen=True)
class DataSet:
    """A few numbers about a shard set."""

    path: str
    facts: list[tuple[str, str]]
    classes: list[tuple[str, str, float]]
    """Name, CSS color, fraction of the training pixels."""


def scored_images(run: RunRecord) -> str:
    """The kind of images the predictions are for, as an adjective."""
    return "labeled" if run.cross_validation else "test"


def headline(run: RunRecord) -> list[tuple[str, str, str]]:
    """The key numbers at the top: label, value, remark."""
    tiles: list[tuple[str, str, str]] = []
    if run.predictions:
        scores = run.predictions[0].scores
        remark = f"{len(scores['images'])} {scored_images(run)} image{'s' * (len(scores['images']) != 1)}"
        tiles.append(("mean IoU over images", number(scores["mean_iou_over_images"]), remark))
        tiles.append(("mean IoU over all pixels", number(scores["mean_iou_pixels"]), "the same images"))
    if best := run.best:
        tiles.append(("best validation mean IoU", number(best["mean_iou"]), f"epoch {best['epoch'] + 1}"))
    if run.step:
        tiles.append(("steps", f"{run.step:,}", f"{run.epoch} epochs"))
    if run.summary.get("seconds"):
        tiles.append(("training time", clock(run.summary["seconds"]), _device(run)))
    if rate := _mean([row.get("samples_per_s") for row in run.train]):
        tiles.append(
            ("samples/s", f"{rate:,.0f}", f"{_mean([row.get('data_wait') for row in run.train]) or 0:.1%} waiting")
        )
    return tiles


def fold_table(run: RunRecord) -> TemplateValues | None:
    """For a folder of folds: the rows of its scores, level and subject of the interval, the number of folds."""
    found = run.cross_validation
    if found is None:
        return None
    level = f"{found['interval']['level']:.0%}"
    return {"rows": fold_rows(found), "level": level, "folds": found["folds"], "drawn": found["interval"]["drawn"]}


def reliability(item: Predictions) -> TemplateValues | None:
    """Calibration error and Brier score of predictions before and after calibration, and the reliability diagram."""
    path = item.folder / CALIBRATION
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        bins = {when: content[when]["bins"] for when in ("before", "after")}
        curves = [Series("perfectly calibrated", [(0.0, 0.0), (1.0, 1.0)])]
        for when, of in bins.items():
            filled = zip(of["pixels"], of["confidence"], of["accuracy"], strict=True)
            curves.append(Series(when, [(sure, right) for pixels, sure, right in filled if pixels]))
        figures = [(when, *(content[when][key] for key in CALIBRATION_FIGURES)) for when in bins]
        temperature = float(content["temperature"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); run the command that wrote it again") from None
    chart = make_chart("accuracy of pixels of that confidence", curves, x_label="confidence")
    return {"chart": chart, "temperature": temperature, "figures": figures}


def suspects(item: Predictions) -> list[Suspect]:
    """The most suspect labels that have a picture, in the order of their rank."""
    table = item.folder / SUSPECTS_TABLE
    if not table.is_file():
        return []
    found = []
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            picture = item.folder / SUSPECT_PICTURES / f"{int(row['rank']):04}.png"
            if picture.is_file():
                where = f"rows {row['top']}–{row['bottom']}, columns {row['left']}–{row['right']}"
                doubt = f"{row['given']}, predicted {row['predicted']} with {float(row['confidence']):.0%}"
                found.append(Suspect(int(row["rank"]), row["file"], where, doubt, data_uri(picture)))
    return found


def learning_curves(run: RunRecord) -> list[Chart]:
    """Scores, losses, rates and speed over the steps; vertical marks where the run was resumed."""
    marks = [(float(event["step"]), "resumed") for event in run.events if event["what"] == "resumed"]
    per_class = [
        Series(name, [(row["step"], row["iou"][index]) for row in run.val]) for index, name in enumerate(run.classes)
    ]
    scores = [_curve("mean IoU", run.val, "mean_iou")]
    if any("mean_iou_without_ema" in row for row in run.val):
        scores = [
            _curve("averaged weights (EMA)", run.val, "mean_iou"),
            _curve("latest weights", run.val, "mean_iou_without_ema"),
        ]
    losses = [_curve("training", run.train, "loss"), _curve("validation", run.val, "loss")]
    charts = [
        make_chart("mean IoU on the validation patches", scores, marks=marks),
        make_chart("IoU per class", per_class, marks=marks),
        make_chart("loss", losses, marks=marks, log=True),
        make_chart("learning rate", [_curve("learning rate", run.train, "lr")], marks=marks),
        make_chart("gradient norm", [_curve("gradient norm", run.train, "grad_norm")], marks=marks, log=True),
        make_chart("samples per second", [_curve("samples/s", run.train, "samples_per_s")], marks=marks),
    ]
    return [chart for chart in charts if chart is not None]


def comparison_curves(runs: Sequence[RunRecord], names: Sequence[str]) -> list[Chart]:
    """The runs' curves on shared axes."""
    wanted = [("validation mean IoU", "val", "mean_iou", False), ("validation loss", "val", "loss", True)]
    wanted.append(("training loss", "train", "loss", True))
    charts = [
        make_chart(
            title,
            [_curve(name, getattr(run, kind), key) for name, run in zip(names, runs, strict=True)],
            log=log,
        )
        for title, kind, key, log in wanted
    ]
    return [chart for chart in charts if chart is not None]


def class_table(run: RunRecord) -> list[JsonObject]:
    """Per class: scores on the validation patches (best epoch) and on the test images, and the latter's pixels."""
    best, test = run.best, run.predictions[0].scores if run.predictions else None
    table = []
    for index, name in enumerate(run.classes):
        entry: JsonObject = {"name": name}
        if best:
            entry |= {"val_iou": best["iou"][index], "val_dice": best["dice"][index]}
        if test and index < len(test["classes"]):
            pixels = sum(test["confusion_matrix"][index])
            entry |= {"test_iou": test["iou"][index], "test_dice": test["dice"][index], "pixels": pixels}
        table.append(entry)
    return table


def matrices(run: RunRecord) -> list[Matrix]:
    """Confusion matrices of all test images and of the best validation."""
    found = [
        _matrix(
            f"{scored_images(run)} images ({item.folder.name})", item.scores["classes"], item.scores["confusion_matrix"]
        )
        for item in run.predictions
    ]
    best = run.best
    if best and best.get("confusion_matrix"):
        found.append(_matrix(f"validation patches, epoch {best['epoch'] + 1}", run.classes, best["confusion_matrix"]))
    return found


def worst_first(item: Predictions) -> list[JsonObject]:
    """The scored images, lowest mean IoU first; images without any counted pixel last."""
    return sorted(item.scores["images"], key=lambda image: (image["mean_iou"] is None, image["mean_iou"] or 0.0))


def figures(item: Predictions, most: int) -> list[Figure]:
    """The figures of the worst images, at most `most`."""
    found: list[Figure] = []
    for image in worst_first(item):
        path = item.folder / FIGURES / f"{image['name']}.png"
        if len(found) < most and path.is_file():
            found.append(Figure(image["name"], image["mean_iou"], data_uri(path)))
    return found


def data_sets(run: RunRecord) -> list[DataSet]:
    """The shard sets that the run trained on, if they are still in place and unchanged."""
    found: list[DataSet] = []
    for entry in run.description.get("data", []):
        try:
            manifest = read_manifest(Path(entry["path"]))
        except UserError:
            found.append(DataSet(entry["path"], [("state", "no longer there")], []))
            continue
        if manifest.fingerprint != entry["fingerprint"]:
            found.append(DataSet(entry["path"], [("state", "changed since this run")], []))
            continue
        found.append(_data_set(entry["path"], manifest))
    return found


def timings(run: RunRecord) -> list[tuple[str, float]]:
    """How the time of all starts was spent, in seconds. Rows cover training; the rest is the time between them."""
    size = run.config.get("batch_size", 0)
    training = waiting = 0.0
    before = 0
    for row in run.train:
        if row.get("samples_per_s"):
            seconds = (row["step"] - before) * size / row["samples_per_s"]
            waiting += seconds * (row.get("data_wait") or 0.0)
            training += seconds * (1 - (row.get("data_wait") or 0.0))
        before = row["step"]
    total = run.summary.get("seconds")
    if not total or not training:
        return []
    parts = [("forward, backward, optimizer", training), ("waiting for data", waiting)]
    return [*parts, ("initial check, validation, checkpoints", max(total - training - waiting, 0.0))]


def rank_times(run: RunRecord) -> list[tuple[int, float, float]]:
    """The latest start's ranks, slowest first, at most `MOST_RANKS`: rank, seconds, multiple of the median.

    The seconds are the rank's own time per step, until it needs the others: its batch and its part of the computation.
    Empty for a single rank.
    """
    seconds: list[float] = run.summary.get("rank_seconds", [])
    usual = median(seconds) if seconds else 0.0
    slowest = sorted(range(len(seconds)), key=lambda rank: -seconds[rank])[:MOST_RANKS]
    return [(rank, seconds[rank], seconds[rank] / usual if usual else 1.0) for rank in slowest]


def settings(config: JsonObject, prefix: str = "") -> dict[str, str]:
    """A config as flat `section.key` → JSON text."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= settings(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(value, ensure_ascii=False)
    return flat


def differences(runs: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Settings in which the runs differ, with each run's value."""
    everything = [settings({k: v for k, v in run.config.items() if k not in NOT_COMPARED}) for run in runs]
    for flat, run in zip(everything, runs, strict=True):
        flat["code"] = str(run.description.get("code", "–"))[:12]
        flat["precision"] = str(run.description.get("precision", "–"))
        flat["data fingerprint"] = ", ".join(entry["fingerprint"][:12] for entry in run.description.get("data", []))
    keys = dict.fromkeys(key for flat in everything for key in flat)
    rows = [(key, [flat.get(key, "–") for flat in everything]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def where(event: JsonObject) -> str:
    """Ranks and device of an event, if it has them: `2 ranks, cpu`."""
    ranks = event.get("ranks")
    return "" if ranks is None else f"{ranks} rank{'s' * (ranks > 1)}, {event['device']}"


def number(value: float | None) -> str:
    """A score with four digits; a dash if there is none."""
    return "–" if value is None else f"{value:.4f}"


def data_uri(path: Path) -> str:
    """A picture as text to embed in the page; as WebP, which for noisy images takes a tenth of a PNG."""
    buffer = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").save(buffer, "WEBP", quality=88)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _curve(label: str, rows: Sequence[Row], key: str) -> Series:
    return Series(label, [(row["step"], row.get(key)) for row in rows])


def _matrix(title: str, class_names: list[str], counts: list[list[int]]) -> Matrix:
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    return Matrix(title, class_names, counts, shares)


def _data_set(path: str, manifest: Manifest) -> DataSet:
    splits = ("train", "val", "test")
    facts = [
        ("patches", ", ".join(f"{manifest.samples(split):,} {split}" for split in splits if manifest.samples(split))),
        ("source images", ", ".join(f"{len(manifest.sources.get(split, ())):,} {split}" for split in splits)),
        (
            "patch",
            f"{manifest.patch} x {manifest.patch}, {manifest.channels} channel{'s' * (manifest.channels > 1)}, "
            f"{manifest.dtype}",
        ),
        ("mean ± standard deviation", _mean_and_deviation(manifest)),
        ("fingerprint", manifest.fingerprint[:16]),
    ]
    total = sum(manifest.pixels) or 1
    classes = [
        (info.name, "#{:02x}{:02x}{:02x}".format(*info.color), pixels / total)
        for info, pixels in zip(manifest.classes, manifest.pixels, strict=True)
    ]
    return DataSet(path, facts, classes)


def _mean_and_deviation(manifest: Manifest) -> str:
    return ", ".join(f"{mean:.1f} ± {std:.1f}" for mean, std in zip(manifest.mean, manifest.std, strict=True))


def _device(run: RunRecord) -> str:
    starts = [event for event in run.events if "ranks" in event]
    return where(starts[-1]) if starts else ""


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
