"""segdist jobs as a user starts them, but in this process, so that torch and the GPU are initialized only once."""

import contextlib
import io
import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Make `folder`, which holds `data/` and `runs/`, the working folder inside the context."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def segdist(*arguments: object) -> float:
    """Run `segdist ARGUMENTS` quietly; return the seconds. On failure, end the benchmark with the output."""
    from jobs.cli import main

    said = io.StringIO()
    began = time.perf_counter()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code: object = main([str(argument) for argument in arguments])
        except SystemExit as error:  # unparsable arguments
            code = error.code
    if code:
        raise SystemExit(f"segdist {' '.join(map(str, arguments))}: exit code {code}\n{said.getvalue()}")
    return time.perf_counter() - began


def make_set(name: str, patch: int, images: int, per_image: int, side: int) -> None:
    """Build a shard set of synthetic images in `data/`, unless it exists."""
    sizes = ("--synthetic.width", side, "--synthetic.height", side, "--synthetic.train", images, "--synthetic.test", 1)
    segdist("make-shards", "-f", name, *sizes, "--patches.size", patch, "--patches.per-image", per_image)


def trained_samples_per_second(run: str, batch: int) -> tuple[float, float]:
    """Samples/s of a run between its first and last metrics row, and the share of time spent waiting for data."""
    rows = [json.loads(line) for line in (Path("runs") / run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["kind"] == "train"]
    # The first row includes the warm-up.
    steps = [later["step"] - earlier["step"] for earlier, later in itertools.pairwise(rows)]
    seconds = [count * batch / row["samples_per_s"] for count, row in zip(steps, rows[1:], strict=True)]
    waited = sum(row["data_wait"] * time for row, time in zip(rows[1:], seconds, strict=True))
    return sum(steps) * batch / sum(seconds), waited / sum(seconds)
