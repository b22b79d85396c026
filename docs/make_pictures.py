"""Remake the pictures of the README and the docs from a run of the demo: `bash jobs/demo.sh`, then

    python docs/make_pictures.py [--run runs/demo] [--out docs] [--only result,status,report,frontier]

result: the figure of the demo's worst test image. status: `segdist status` as it looks in a terminal. report: the page
on a wide light screen and on a dark phone, by Chromium. frontier: what tile and overlap give and cost; takes minutes.
"""

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.terminal_theme import MONOKAI

from segdist.core.errors import UserError
from segdist.core.files import whole_file
from segdist.runs.record import read_run
from segdist.runs.report import write_report
from segdist.runs.status import status

DOCS = Path(__file__).resolve().parent
# Rich's own names a font on the web.
SVG = """<svg viewBox="0 0 {terminal_width} {terminal_height}" xmlns="http://www.w3.org/2000/svg">
<style>.{unique_id}-matrix {{ font: {char_height}px "DejaVu Sans Mono", Menlo, Consolas, monospace; }}
{styles}</style>
<defs>{lines}</defs>
<rect width="100%" height="100%" rx="8" fill="#0c0c0c"/>
<g class="{unique_id}-matrix" transform="translate(14 0)">{backgrounds}{matrix}</g>
</svg>
"""
WIDE, PHONE = (1280, 1500), (500, 1500)
"""Width and height of the screens, in pixels. Chromium's windows can't be narrower than 500."""
MARGIN = 24


def result(run: Path, target: Path) -> None:
    """The figure of the method for the worst of the test images."""
    scores = next(iter(sorted(run.glob("predictions/*/scores.json"))), None)
    if scores is None:
        raise UserError(f"{run}: no scored predictions; run segdist infer -m {run}")
    worst = json.loads(scores.read_text())["worst"][0]
    with whole_file(target) as file:
        file.write((scores.parent / "figures" / f"{worst}.png").read_bytes())


def status_in_a_terminal(run: Path, target: Path) -> None:
    """`segdist status RUN`, as SVG."""
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True, highlight=False)
    console.print("", status(read_run(run)), "", sep="\n")  # the terminal's margin
    with whole_file(target) as file:
        file.write(console.export_svg(code_format=SVG, theme=MONOKAI, font_aspect_ratio=0.602).encode())


def report(run: Path, target: Path) -> None:
    """The upper part of the report: wide and light, next to narrow and dark."""
    with tempfile.TemporaryDirectory() as folder:
        page = write_report([run], Path(folder) / "report.html")
        wide = screenshot(page, Path(folder) / "wide.png", WIDE, dark=False)
        phone = screenshot(page, Path(folder) / "phone.png", PHONE, dark=True)
    both = Image.new("RGB", (wide.width + phone.width + 3 * MARGIN, wide.height + 2 * MARGIN), (140, 149, 159))
    both.paste(wide, (MARGIN, MARGIN))
    both.paste(phone, (wide.width + 2 * MARGIN, MARGIN))
    with whole_file(target) as file:
        both.quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)


def screenshot(page: Path, target: Path, size: tuple[int, int], *, dark: bool) -> Image.Image:
    """The top of an HTML file as a browser window of `size` shows it."""
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    browser = next(filter(None, found), None)
    if browser is None:
        raise UserError("no Chromium here: apt-get install chromium, or leave the report out with --only")
    # --blink-settings: what a person chooses in the system's settings.
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        f"--window-size={size[0]},{size[1]}",
        f"--user-data-dir={target}.profile",
        f"--screenshot={target}",
        page.as_uri(),
    ]
    subprocess.run([browser, *options], check=True, capture_output=True, timeout=120)
    with Image.open(target) as picture:
        return picture.convert("RGB")


def frontier(run: Path, target: Path) -> None:
    """Score against cost of the choices in inference."""
    sys.path.insert(0, str(DOCS.parent))
    from tests.benchmarks.frontier import measure, plot

    plot(measure(run, Path(read_run(run).description["data"][0]["path"])), target)


PICTURES: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "result": (result, "images/result.png"),
    "status": (status_in_a_terminal, "images/status.svg"),
    "report": (report, "images/report.png"),
    "frontier": (frontier, "inference-frontier.png"),
}


def main(argv: list[str] | None = None) -> int:
    """Make the pictures; 2 where something they need is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--out", type=Path, default=DOCS)
    parser.add_argument("--only", default=",".join(PICTURES), help="with commas: " + ", ".join(PICTURES))
    arguments = parser.parse_args(argv)
    wanted = arguments.only.split(",")
    if unknown := set(wanted) - set(PICTURES):
        parser.error(f"--only {arguments.only}: no picture {', '.join(sorted(unknown))}")
    for name in wanted:
        make, file = PICTURES[name]
        target = arguments.out / file
        try:
            make(arguments.run, target)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(target, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
