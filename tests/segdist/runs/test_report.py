"""The report: its contents, and that it is self-contained."""

import json
import math
import re
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from segdist.core.errors import UserError
from segdist.core.shipped import shipped_files
from segdist.runs.report import write_report
from segdist.runs.report_charts import HEIGHT, MOST_POINTS, WIDTH, Series, make_chart, nice_ticks, short, thinned
from tests.support.run_example import write_predictions, write_run

CSS = shipped_files("segdist.runs", "templates", ".j2")["report.html"]
HOSTILE = "<script>alert('x')</script>&\"'"
VOID = {"meta", "img", "br", "line", "path", "circle", "link", "input"}


class Page(HTMLParser):
    """The page's elements, checked for correct nesting, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def report_of(folder: Path) -> Page:
    """The parsed report of a run."""
    return Page(write_report([folder]).read_text())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with predictions."""
    folder = write_run(tmp_path / "alpha")
    write_predictions(folder / "predictions" / "cells", ["first", "second", "third"])
    return folder


def test_the_report_has_everything_promised(run: Path) -> None:
    page = report_of(run)
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {"curves", "classes", "confusion", "images1", "data", "time", "again"} <= ids
    for text in (
        "0.9012",
        "resumed once",
        "2 steps skipped",
        "segdist train -f cells",
        "optim.lr",
        "nucleus",
        "2 ranks, cpu",
        "0:12",
    ):
        assert text in page.text
    assert sum(tag == "img" for tag, _ in page.tags) == 3
    assert sum(attributes.get("class") == "chart" for _, attributes in page.tags) == 6


def test_averaged_and_latest_weights_have_separate_curves(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    changed = [row | ({"mean_iou_without_ema": 0.5} if row["kind"] == "val" else {}) for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    assert "averaged weights (EMA)" in report_of(folder).text


def test_worst_images_come_first(run: Path) -> None:
    titles = re.findall(r"<h3>(\w+) <span", (write_report([run])).read_text())
    assert titles == ["third", "second", "first"]


def test_the_page_loads_nothing_external(run: Path) -> None:
    page = report_of(run)
    assert not any(tag in ("script", "link", "iframe") for tag, _ in page.tags)
    for _, attributes in page.tags:
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#")
    html = (run / "report.html").read_text()
    assert "http://" not in html
    assert "https://" not in html
    assert "default-src 'none'" in html


def test_user_text_from_any_source_is_escaped(tmp_path: Path) -> None:
    names = [HOSTILE, "b"]
    folder = write_run(
        tmp_path / "a<u>", classes=names, config={HOSTILE: HOSTILE}, command=["segdist", "train", "--name", HOSTILE]
    )
    write_predictions(folder / "predictions" / "<s>set", [HOSTILE.replace("/", "")], classes=names)
    other = write_run(tmp_path / "<em>", classes=names, config={HOSTILE: "y"})
    for target in (write_report([folder]), write_report([folder, other])):
        page = Page(target.read_text())
        assert not {"script", "u", "s", "em"} & {tag for tag, _ in page.tags}
        assert "<script" not in target.read_text()
        assert HOSTILE in page.text


@pytest.mark.parametrize("classes", [1, 2, 30])
def test_any_number_of_classes_can_be_reported(tmp_path: Path, classes: int) -> None:
    names = [f"class {index}" for index in range(classes)]
    folder = write_run(tmp_path / "run", classes=names)
    write_predictions(folder / "predictions" / "x", ["a"], classes=names)
    assert f"class {classes - 1}" in report_of(folder).text


def test_a_run_that_just_started_can_be_reported(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps_done=10, state=None)
    assert "Reproduce this run" in report_of(folder).text


def test_predictions_outside_a_run_can_be_reported(tmp_path: Path) -> None:
    folder = write_predictions(tmp_path / "out", ["a", "b"], figures=False)
    page = report_of(folder)
    assert "2 images, the worst first." in page.text
    assert "Learning curves" not in page.text


def test_missing_scores_are_dashes(tmp_path: Path) -> None:
    folder = write_predictions(tmp_path / "out", ["a"])
    scores = json.loads((folder / "scores.json").read_text())
    scores["images"][0] |= {"mean_iou": None, "iou": [None, None, None]}
    scores |= {"mean_iou_over_images": None, "iou": [None, None, None], "dice": [None, None, None]}
    (folder / "scores.json").write_text(json.dumps(scores))
    assert "–" in report_of(folder).text


def test_the_number_of_figures_can_be_limited(run: Path) -> None:
    assert write_report([run], figures=1).read_text().count("<img") == 1
    assert write_report([run], figures=0).read_text().count("<img") == 0


def test_a_comparison_shows_curves_scores_and_differences(tmp_path: Path, run: Path) -> None:
    other = write_run(tmp_path / "beta", level=0.7, config={"optim": {"lr": 0.1}})
    target = write_report([run, other])
    assert target == tmp_path / "comparison.html"
    page = Page(target.read_text())
    for text in ("alpha", "beta", "best validation mean IoU", "optim.lr", "0.1", "training loss"):
        assert text in page.text
    best = re.findall(r'class="best">([\d.]+)<', target.read_text())
    assert best[0] == "0.8331"


def test_runs_with_the_same_name_are_distinguished_by_their_folders(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / where / "run") for where in ("here", "there")]
    text = Page(write_report(folders).read_text()).text
    assert str(folders[0]) in text
    assert str(folders[1]) in text


def test_comparing_a_run_with_itself_is_refused(run: Path) -> None:
    with pytest.raises(UserError, match="given twice"):
        write_report([run, run / ".." / "alpha"])


def test_a_folder_is_refused_as_the_output_file(tmp_path: Path, run: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder; name a file in it, such as .*report\.html"):
        write_report([run], out=tmp_path)


def test_scores_absent_from_all_runs_have_no_column(tmp_path: Path) -> None:
    assert "test IoU" not in report_of(write_run(tmp_path / "untested")).text
    assert "validation IoU" not in report_of(write_predictions(tmp_path / "out", ["a"])).text


def test_a_run_started_from_python_shows_no_command(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    description = json.loads((folder / "config.json").read_text()) | {"command": []}
    (folder / "config.json").write_text(json.dumps(description))
    page = report_of(folder)
    assert "Started from Python" in page.text
    assert "pre" not in {tag for tag, _ in page.tags}


VALUES = st.floats(-1e9, 1e9)


@given(VALUES, VALUES)
@example(0.0, 5e-324)
@example(-1e9, -999999999.9999999)
@settings(deadline=None, max_examples=200)
def test_ticks_cover_the_range_evenly(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    ticks = nice_ticks(low, high)
    slack = 1e-6 * max(abs(low), abs(high), 1e-300)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 8
    inside = nice_ticks(low, high, inside=True)
    assert all(low - slack <= tick <= high + slack for tick in inside)


@given(st.lists(st.one_of(st.none(), VALUES), min_size=1, max_size=60), st.booleans())
@settings(deadline=None, max_examples=100)
def test_lines_stay_inside_the_chart(values: list[float | None], log: bool) -> None:
    chart = make_chart("x", [Series("a", list(enumerate(values)))], log=log)
    if chart is None:
        assert all(value is None for value in values)
        return
    numbers = [float(text) for text in re.findall(r"-?[\d.]+", chart.lines[0].path)]
    assert all(0 <= x <= WIDTH for x in numbers[::2])
    assert all(0 <= y <= HEIGHT for y in numbers[1::2])


def test_all_lines_of_a_chart_look_different() -> None:
    chart = make_chart("x", [Series(str(number), [(0, number), (1, number)]) for number in range(30)])
    assert chart is not None
    assert len({(line.color, line.dash) for line in chart.lines}) == 30


def test_missing_values_leave_a_gap_in_the_line() -> None:
    chart = make_chart("x", [Series("a", [(0, 1.0), (1, 2.0), (2, None), (3, 3.0), (4, 1.0)])])
    assert chart is not None
    assert chart.lines[0].path.count("M") == 2


def test_a_loss_over_many_decades_gets_a_logarithmic_axis() -> None:
    chart = make_chart("loss", [Series("a", [(0, 100.0), (1, 1.0), (2, 0.01)])], log=True)
    assert chart is not None
    assert [tick.text for tick in chart.y_ticks] == ["0.01", "0.1", "1", "10", "100"]


def test_long_series_are_thinned_without_losing_their_mean() -> None:
    points = [(float(step), math.sin(step)) for step in range(100_000)]
    thin = thinned(points)
    assert len(thin) == MOST_POINTS
    assert sum(y for _, y in thin if y is not None) / len(thin) == pytest.approx(0, abs=1e-3)
    assert thin[-1][0] == points[-1][0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (400, "400"),
        (12000, "12k"),
        (3e-4, "0.0003"),
        (3e-5, "3e-5"),
        (2e6, "2M"),
        (-0.5, "-0.5"),
        (1e-12, "1e-12"),
    ],
)
def test_axis_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


SIGHT = {
    "usual": np.eye(3),
    # Machado, Oliveira and Fernandes 2009, severity 1; on linear RGB.
    "protan": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "deutan": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "tritan": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(color: str, sight: str) -> np.ndarray:
    """CIE L*a*b* of `#rrggbb` as perceived with this color vision."""
    rgb = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = TO_XYZ @ (SIGHT[sight] @ linear).clip(0, 1) / (0.9505, 1.0, 1.089)
    fx, fy, fz = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return np.array([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])


@pytest.mark.parametrize("sight", SIGHT)
def test_line_colors_are_distinguishable_with_any_color_vision(sight: str) -> None:
    """Dash patterns differ as well, for print and for the closest pairs of colors."""
    themes = re.findall(r"--s0: (#\w{6}); --s1: (#\w{6}); --s2: (#\w{6}); --s3: (#\w{6}); --s4: (#\w{6});", CSS)
    assert len(themes) == 3
    for colors in themes:
        apart = [np.linalg.norm(lab(a, sight) - lab(b, sight)) for a, b in combinations(colors, 2)]
        assert min(apart) > 10, (colors, apart)
