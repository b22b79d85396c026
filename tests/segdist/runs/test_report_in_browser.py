"""The report in headless Chromium: narrow and wide, light and dark, on paper.

Checks what was once reviewed by eye: nothing overflows, pictures load, colors have enough contrast.
"""

import html
import json
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from segdist.runs.report import write_report
from tests.support.run_example import write_predictions, write_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None, reason="NO CHROMIUM HERE: the report was not looked at (apt install chromium)"
    ),
]

# The report itself allows no scripts, so an enclosing page inspects it.
HARNESS = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe src="report.html" style="border:0;width:WIDTHpx;height:900px"></iframe><pre id="found"></pre><script>
const frame = document.querySelector("iframe");
function numbers(color) { return color.match(/[\\d.]+/g).slice(0, 3).map(Number); }
function luminance(color) {
  const [r, g, b] = numbers(color).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function contrast(a, b) {
  const [dark, light] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (light + 0.05) / (dark + 0.05);
}
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement, style = e => frame.contentWindow.getComputedStyle(e);
  const paper = style(page.body).backgroundColor, card = style(page.querySelector(".chart")).backgroundColor;
  const least = (selector, property, ground) =>
    Math.min(...[...page.querySelectorAll(selector)].map(e => contrast(style(e)[property], ground)));
  document.getElementById("found").textContent = JSON.stringify({
    sticking_out: [...page.querySelectorAll("main *, header *")].filter(e => !e.parentElement.closest(".scroll")
      && e.getBoundingClientRect().right > root.clientWidth + 1).map(e => e.outerHTML.slice(0, 80)),
    overflow: root.scrollWidth - root.clientWidth,
    paper: luminance(paper),
    text: least("h1, h2, h3, td.text, th, p, a, dd, li", "color", paper),
    lines: least("path.line", "stroke", card),
    ticks: least(".tick", "fill", card),
    pictures: [...page.images].filter(image => image.complete && image.naturalWidth > 0).length,
    regions: [...page.querySelectorAll(".scroll")].every(e => e.tabIndex === 0 && e.getAttribute("aria-label")),
    headings: [...page.querySelectorAll("h1, h2, h3")].map(e => Number(e.tagName[1])),
  });
};
</script>"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with long names, many classes and wide tables."""
    classes = ["background", "an unreasonably long name of a class", *(f"class {index}" for index in range(10))]
    folder = write_run(tmp_path_factory.mktemp("runs") / ("a_long_run_name_" * 6), classes=classes)
    write_predictions(folder / "predictions" / "cells", ["first", "second_" * 15], classes=classes)
    return write_report([folder])


def chromium(tmp_path: Path, *arguments: str) -> str:
    """Run the browser once and return its output."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def look(report: Path, tmp_path: Path, width: int, *, dark: bool) -> dict[str, Any]:
    """The findings of the page around the report."""
    harness = report.parent / f"harness-{width}.html"
    harness.write_text(HARNESS.replace("WIDTH", str(width)))
    dom = chromium(
        tmp_path,
        "--allow-file-access-from-files",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        f"--window-size={max(width, 500)},1000",
        "--virtual-time-budget=10000",
        "--dump-dom",
        harness.as_uri(),
    )
    match = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert match is not None
    assert match[1], "the report did not load"
    found: dict[str, Any] = json.loads(html.unescape(match[1]))
    return found


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_and_is_readable(report: Path, tmp_path: Path, width: int, dark: bool) -> None:
    found = look(report, tmp_path, width, dark=dark)
    assert found["sticking_out"] == []
    assert found["overflow"] == 0
    assert (found["paper"] < 0.1) == dark
    assert found["text"] >= 4.5
    assert found["ticks"] >= 4.5
    assert found["lines"] >= 3.0
    assert found["pictures"] == 2
    assert found["regions"]


def test_heading_levels_have_no_gaps(report: Path, tmp_path: Path) -> None:
    levels = look(report, tmp_path, 1280, dark=False)["headings"]
    assert levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))


def test_the_page_can_be_printed(report: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.pdf"
    chromium(tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={target}", report.as_uri())
    pages = len(re.findall(rb"/Type\s*/Page\b", target.read_bytes()))
    assert 2 <= pages <= 20
