"""The same bytes for any number of ranks and threads, and after SIGKILL at any moment; real processes."""

import random
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdist.inference.assignment import SMALLEST_CUT, Stretch, assign, remaining
from tests.support.inference_parts import checksums, image_task, run, start, write_images, write_model, write_truth


@given(
    st.lists(st.tuples(st.integers(1, 400), st.integers(1, 60)), min_size=1, max_size=30),
    st.integers(1, 9),
)
@settings(deadline=None)
def test_every_tile_row_has_one_owner_and_the_work_is_even(images: list[tuple[int, int]], world_size: int) -> None:
    stretches = [Stretch(image_task(index, rows, across), range(rows)) for index, (rows, across) in enumerate(images)]
    pieces = assign(stretches, world_size)
    owned = sorted((part.image.number, row) for piece in pieces for part in piece for row in part.rows)
    assert owned == [(index, row) for index, (rows, _) in enumerate(images) for row in range(rows)]
    share = sum(stretch.tiles for stretch in stretches) / world_size
    # A piece may end half an uncut image, or half a tile row, off its share on each side.
    uncut = [stretch.tiles for stretch in stretches if stretch.tiles < SMALLEST_CUT]
    slack = max(uncut + [stretch.image.tiles_across for stretch in stretches])
    assert all(abs(sum(part.tiles for part in piece) - share) <= slack + 1 for piece in pieces)


@given(st.integers(0, 40), st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10)), max_size=4))
@settings(deadline=None)
def test_what_remains_is_the_difference(rows: int, done: list[tuple[int, int]]) -> None:
    ranges = [range(first, min(first + count, rows)) for first, count in done if first < rows]
    left = remaining(range(rows), ranges)
    assert [row for part in left for row in part] == sorted(set(range(rows)) - {row for part in ranges for row in part})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    write_model(folder / "run")
    write_images(folder / "images")
    write_truth(folder / "truth")
    assert run(arguments(folder, "reference")) == 0
    return folder


def arguments(folder: Path, out: str, *more: str) -> list[str]:
    options = ["-m", folder / "run", "-i", folder / "images", "--masks.folder", folder / "truth", "-o", folder / out]
    options += [
        "--output.probabilities",
        "float32",
        "--output.figures",
        "0",
        "--wandb",
        "off",
        "--quiet",
        "--device",
        "cpu",
    ]
    options += more
    return [str(option) for option in options]


def results(folder: Path, out: str) -> dict[str, str]:
    """Checksums of what stands under its name; temporary files of killed jobs have a dot in front.

    Without the report and what it knows of times.
    """
    found = checksums(folder / out).items()
    return {
        name: checksum
        for name, checksum in found
        if not name.startswith(("report", "times")) and "/." not in f"/{name}"
    }


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "threads"), [(2, 1), (3, 2), (4, 1), (5, 4)])
def test_the_same_bytes_for_any_number_of_ranks_and_threads(folder: Path, ranks: int, threads: int) -> None:
    out = f"ranks{ranks}"
    assert run(arguments(folder, out, "--threads", str(threads)), ranks) == 0
    assert len(results(folder, out)) == 4 * 3 + 1  # mask, probabilities, preview of each image; scores
    assert results(folder, out) == results(folder, "reference")


@pytest.mark.slow
def test_the_same_bytes_with_weighted_blending_full_borders_and_flips(folder: Path) -> None:
    options = ["--blending", "gaussian", "--borders", "full", "--overlap", "0.75", "--flips"]
    assert run(arguments(folder, "g1", *options)) == 0
    assert run(arguments(folder, "g3", *options), 3) == 0
    assert results(folder, "g1") == results(folder, "g3")
    assert results(folder, "g1") != results(folder, "reference")


@pytest.mark.slow
def test_the_same_bytes_after_kills_at_random_moments_and_with_changing_ranks(folder: Path) -> None:
    # Rows are made safe after every tile row, everything goes through parts, and the model is slowed down, so that
    # the kills hit all phases.
    prelude = (
        "import time, segdist.inference.parts as o, segdist.inference.segment as j, segdist.inference.tiler as i; "
        "o.SAFE_INTERVAL = 0; j.MEMORY_LIMIT = 0; f = i.TileModel.probabilities; "
        "i.TileModel.probabilities = lambda self, tiles: (time.sleep(0.01), f(self, tiles))[1]"
    )
    chance = random.Random(11)
    reference = results(folder, "reference")
    for attempt in range(6):
        processes = start(arguments(folder, "killed"), 1 + attempt % 3, prelude)
        time.sleep(chance.uniform(2.0, 6.0))
        for process in processes:
            process.send_signal(signal.SIGKILL)
        for process in processes:
            process.wait()
        assert results(folder, "killed").items() <= reference.items()  # what stands under its name is whole
    assert run(arguments(folder, "killed"), 2) == 0
    assert results(folder, "killed") == reference
    assert not list((folder / "killed/masks").glob(".*"))


@pytest.mark.slow
def test_a_rank_that_dies_leaves_no_other_hanging(folder: Path) -> None:
    prelude = (
        "import os, segdist.inference.tiler as i; f = i.TileModel.probabilities; "
        "i.TileModel.probabilities = lambda s, t: os._exit(9) if os.environ['RANK'] == '1' else f(s, t)"
    )
    processes = start(arguments(folder, "dies"), 3, prelude)
    codes = [process.wait(timeout=120) for process in processes]
    assert codes[1] == 9
    assert codes[0] != 0
    assert run(arguments(folder, "dies"), 2) == 0
    assert results(folder, "dies") == results(folder, "reference")
