"""The same bytes for any number of ranks and threads, and after SIGKILL at any moment, tested with real processes."""

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
def test_every_tile_row_has_one_owner_and_work_is_balanced(images: list[tuple[int, int]], world_size: int) -> None:
    stretches = [Stretch(image_task(index, rows, across), range(rows)) for index, (rows, across) in enumerate(images)]
    pieces = assign(stretches, world_size)
    owned = sorted((part.image.number, row) for piece in pieces for part in piece for row in part.rows)
    assert owned == [(index, row) for index, (rows, _) in enumerate(images) for row in range(rows)]
    share = sum(stretch.tiles for stretch in stretches) / world_size
    # Each end of a piece may be off by half an uncut image or half a tile row.
    uncut = [stretch.tiles for stretch in stretches if stretch.tiles < SMALLEST_CUT]
    slack = max(uncut + [stretch.image.tiles_across for stretch in stretches])
    assert all(abs(sum(part.tiles for part in piece) - share) <= slack + 1 for piece in pieces)


@pytest.mark.parametrize("rows", [85, 87])
def test_the_odd_tile_row_goes_to_the_rank_that_recomputes_none(rows: int) -> None:
    upper, lower = assign([Stretch(image_task(0, rows, 60), range(rows))], 2)
    assert upper[0].rows == range(rows // 2 + 1)
    assert lower[0].rows == range(rows // 2 + 1, rows)


@given(st.integers(0, 40), st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10)), max_size=4))
@settings(deadline=None)
def test_remaining_rows_are_all_minus_finished(rows: int, done: list[tuple[int, int]]) -> None:
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
        "--output.measurements",
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
    """Checksums of finished files; temporary files of killed jobs start with a dot.

    The report is left out because it contains times.
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
    assert len(results(folder, out)) == 4 * 5 + 1  # mask, probabilities, preview, two tables of each image; scores
    assert results(folder, out) == results(folder, "reference")


@pytest.mark.slow
def test_the_same_bytes_with_weighted_blending_full_borders_and_flips(folder: Path) -> None:
    options = ["--blending", "gaussian", "--borders", "full", "--overlap", "0.75", "--flips"]
    assert run(arguments(folder, "g1", *options)) == 0
    assert run(arguments(folder, "g3", *options), 3) == 0
    assert results(folder, "g1") == results(folder, "g3")
    assert results(folder, "g1") != results(folder, "reference")


@pytest.mark.slow
def test_the_same_bytes_after_random_kills_and_with_changing_ranks(folder: Path) -> None:
    # Saving after every tile row, parts for every image and a slowed model make the kills hit all phases.
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
        assert results(folder, "killed").items() <= reference.items()  # finished files are complete
    assert run(arguments(folder, "killed"), 2) == 0
    assert results(folder, "killed") == reference
    assert not list((folder / "killed/masks").glob(".*"))


@pytest.mark.slow
def test_a_rank_that_dies_leaves_no_other_rank_hanging(folder: Path) -> None:
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


def held_by(file: Path) -> str:
    """A prelude that blocks the model while this file exists."""
    return (
        "import os, time, segdist.inference.tiler as i; f = i.TileModel.probabilities; "
        f"i.TileModel.probabilities = lambda *a: [time.sleep(0.1) for _ in iter(lambda: os.path.exists({str(file)!r}), "
        "False)] and False or f(*a)"
    )


def at_work(folder: Path, out: str) -> None:
    """Wait until a job has started writing to its output folder."""
    deadline = time.monotonic() + 60
    while not (folder / out / "state/settings.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_second_job_in_the_folder_is_refused_and_resumes_at_once_after_a_kill(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "hold").touch()
    first = start(arguments(folder, "owned"), prelude=held_by(folder / "hold"))[0]
    at_work(folder, "owned")
    assert run(arguments(folder, "owned")) == 2
    message = capfd.readouterr().err
    assert f"owned: in use by segdist infer (process {first.pid} on" in message
    assert run([*arguments(folder, "owned"), "--task", "0/2"]) == 2
    first.kill()
    first.wait()
    assert run(arguments(folder, "owned")) == 0
    assert results(folder, "owned") == results(folder, "reference")
    assert not (folder / "owned/.owners").exists()


@pytest.mark.slow
def test_each_task_of_an_array_writes_into_one_folder_once(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "hold").touch()
    first = start(arguments(folder, "array", "--task", "1/2"), prelude=held_by(folder / "hold"))[0]
    at_work(folder, "array")
    assert run(arguments(folder, "array", "--task", "1/2")) == 2
    assert run(arguments(folder, "array", "--task", "1/3")) == 2
    assert capfd.readouterr().err.count(f"in use by segdist infer (process {first.pid} on") == 2
    assert run(arguments(folder, "array", "--task", "0/2")) == 0
    assert first.poll() is None  # they ran at the same time
    (folder / "hold").unlink()
    assert first.wait(timeout=120) == 0
    assert run(arguments(folder, "array")) == 0
    merged = {name: value for name, value in results(folder, "array").items() if "-of-" not in name}
    assert merged == results(folder, "reference")


@pytest.mark.slow
def test_results_keep_their_bits_when_ranks_and_threads_change(tmp_path: Path) -> None:
    # With 4 tiles of the default model in a batch, sums in the last layer depend on the number of threads.
    write_model(tmp_path / "run", width=16, depth=4, patch=96)
    write_images(tmp_path / "images", {"a": (200, 150)})
    options = ["-m", tmp_path / "run", "-i", tmp_path / "images", "--device", "cpu", "--wandb", "off", "--quiet"]
    options += ["--output.probabilities", "float32", "--output.figures", "0", "-b", 4, "-o"]
    assert run([*map(str, options), str(tmp_path / "changing"), "--threads", "2"]) == 0
    write_images(tmp_path / "images", {"a2": (1, 1), "b": (201, 149)})
    assert run([*map(str, options), str(tmp_path / "changing")], ranks=2) == 0  # default: a core and a thread per rank
    assert run([*map(str, options), str(tmp_path / "whole"), "--threads", "2"]) == 0
    assert results(tmp_path, "changing") == results(tmp_path, "whole")
