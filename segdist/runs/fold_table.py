"""The scores of a cross-validation as rows, for the terminal and the report."""

from dataclasses import dataclass

from segdist.core.json_values import JsonObject, JsonValue

OVERALL = {"mean_iou_pixels": "mean, all pixels", "mean_iou_over_images": "mean over images"}
"""Scores over all classes, and their labels."""


@dataclass(frozen=True)
class FoldRow:
    """IoU of a class, or a mean over the classes; None where it is undefined."""

    name: str
    iou: float | None
    """The score of all images together."""
    low: float | None
    """Bounds of the interval."""
    high: float | None
    mean: float | None
    """The mean over the folds; `deviation` is their standard deviation."""
    deviation: float | None


def fold_rows(scores: JsonObject) -> list[FoldRow]:
    """A row for each class, then those of `OVERALL`.

    Args:
        scores: the content of a cross-validation's scores.json (`segdist.inference.cross_validation.score`).
    """

    def column(values: JsonObject) -> list[JsonValue]:
        return [*values["iou"], *(values[key] for key in OVERALL)]

    names = [*scores["classes"], *OVERALL.values()]
    columns = column(scores), column(scores["interval"]), column(scores["spread"])
    rows = []
    for name, iou, bounds, own in zip(names, *columns, strict=True):
        low, high = bounds or (None, None)
        rows.append(FoldRow(name, iou, low, high, own["mean"], own["deviation"]))
    return rows
