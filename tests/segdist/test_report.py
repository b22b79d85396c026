"""The report: what stands in it, and that a browser can show it anywhere."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from segdist.report import write_report
from segdist.report_charts import HEIGHT, MOST_POINTS, WIDTH, Series, make_chart, nice_ticks, short, thinned
from shards.errors import UserError
from tests.segdist.run_example import write_predictions, write_run

HOSTILE = "<script>alert('x')</script>&\"'"
VOID = {"meta", "img", "br", "line", "path", "circle", "link", "input"}


class Page(HTMLParser):
    """The page's elements, checked to be nested as they should, and its text."""

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


def test_everything_that_was_promised_is_there(run: Path) -> None:
    page = report_of(run)
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {"curves", "classes", "confusion", "images1", "data", "time", "again"} <= ids
    for text in ("0.9012", "taken up again once", "2 steps skipped", "segdist train -f cells", "optim.lr", "nucleus"):
        assert text in page.text
    assert sum(tag == "img" for tag, _ in page.tags) == 3
    assert sum(attributes.get("class") == "chart" for _, attributes in page.tags) == 6


def test_worst_images_come_first(run: Path) -> None:
    titles = re.findall(r"<h3>(\w+) <span", (write_report([run])).read_text())
    assert titles == ["third", "second", "first"]


def test_page_needs_nothing_from_anywhere(run: Path) -> None:
    page = report_of(run)
    assert not any(tag in ("script", "link", "iframe") for tag, _ in page.tags)
    for _, attributes in page.tags:
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#")
    html = (run / "report.html").read_text()
    assert "http://" not in html
    assert "https://" not in html
    assert "default-src 'none'" in html


def test_user_text_is_escaped_wherever_it_comes_from(tmp_path: Path) -> None:
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
def test_any_number_of_classes(tmp_path: Path, classes: int) -> None:
    names = [f"class {index}" for index in range(classes)]
    folder = write_run(tmp_path / "run", classes=names)
    write_predictions(folder / "predictions" / "x", ["a"], classes=names)
    assert f"class {classes - 1}" in report_of(folder).text


def test_run_that_has_only_begun(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps_done=10, state=None)
    assert "To do it again" in report_of(folder).text


def test_folder_of_predictions_alone(tmp_path: Path) -> None:
    folder = write_predictions(tmp_path / "out", ["a", "b"], figures=False)
    page = report_of(folder)
    assert "2 images, the worst first." in page.text
    assert "Learning curves" not in page.text


def test_scores_that_do_not_exist_are_dashes(tmp_path: Path) -> None:
    folder = write_predictions(tmp_path / "out", ["a"])
    scores = json.loads((folder / "scores.json").read_text())
    scores["images"][0] |= {"mean_iou": None, "iou": [None, None, None]}
    scores |= {"mean_iou_over_images": None, "iou": [None, None, None], "dice": [None, None, None]}
    (folder / "scores.json").write_text(json.dumps(scores))
    assert "–" in report_of(folder).text


def test_number_of_figures_can_be_limited(run: Path) -> None:
    assert write_report([run], figures=1).read_text().count("<img") == 1
    assert write_report([run], figures=0).read_text().count("<img") == 0


def test_comparison_shows_curves_scores_and_differences(tmp_path: Path, run: Path) -> None:
    other = write_run(tmp_path / "beta", level=0.7, config={"optim": {"lr": 0.1}})
    target = write_report([run, other])
    assert target == tmp_path / "comparison.html"
    page = Page(target.read_text())
    for text in ("alpha", "beta", "best validation mean IoU", "optim.lr", "0.1", "training loss"):
        assert text in page.text
    best = re.findall(r'class="best">([\d.]+)<', target.read_text())
    assert best[0] == "0.8331"


def test_runs_of_the_same_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / where / "run") for where in ("here", "there")]
    text = Page(write_report(folders).read_text()).text
    assert str(folders[0]) in text
    assert str(folders[1]) in text


def test_the_same_run_twice_is_refused(run: Path) -> None:
    with pytest.raises(UserError, match="named twice"):
        write_report([run, run / ".." / "alpha"])


VALUES = st.floats(-1e9, 1e9)


@given(VALUES, VALUES)
@example(0.0, 5e-324)
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


def test_line_has_a_gap_where_there_is_no_number() -> None:
    chart = make_chart("x", [Series("a", [(0, 1.0), (1, 2.0), (2, None), (3, 3.0), (4, 1.0)])])
    assert chart is not None
    assert chart.lines[0].path.count("M") == 2


def test_loss_over_many_decades_gets_a_logarithmic_axis() -> None:
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
def test_numbers_on_axes_are_short(value: float, text: str) -> None:
    assert short(value) == text
