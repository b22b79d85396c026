"""Several ranks, and too little memory, on one GPU. Without a GPU the tests run on the CPU."""

from pathlib import Path

import pytest

from segdist.runs.record import read_rows
from shards.build.config import PatchesConfig
from tests.support.programs import QUIET, ROOT, TINY_NET, job, run, script
from tests.support.sets import tiny_set

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a small set."""
    folder = tmp_path_factory.mktemp("one-gpu")
    tiny_set(folder / "data", patches=PatchesConfig(size=32, per_image=40))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_ranks_sharing_a_gpu_train_like_one_rank(work: Path, device: str) -> None:
    settings = ["-f", "tiny", "-b", "8", "--steps", "12", "--validate-every", "6", "--log-every", "3"]
    settings += [*TINY_NET, *QUIET, "--device", device, "--precision", "fp32"]
    run(job("train", [*settings, "-n", f"one-{device}"]), work)
    shared = ["train", "8", *settings, "-n", f"two-{device}"]
    run(script(ROOT / "tests" / "support" / "one_card.py", shared, ranks=2), work)
    one, two = (read_rows(work / "runs" / f"{name}-{device}" / "metrics.jsonl") for name in ("one", "two"))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for alone, together in zip(one, two, strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-3)
        if alone["kind"] == "val":
            assert sum(map(sum, together["confusion_matrix"])) == sum(map(sum, alone["confusion_matrix"]))


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_a_process_group_supports_every_call(work: Path, device: str) -> None:
    done = run(script(ROOT / "tests" / "support" / "group_of_one.py", [device]), work)
    assert "all is well" in done.stdout


@pytest.mark.gpu
def test_a_batch_too_large_for_the_gpu_is_answered_with_one_that_fits(work: Path) -> None:
    settings = ["-f", "tiny", "-b", "400", "--steps", "2", "--model.width", "64", *QUIET, "--device", "cuda"]
    small = ["train", "0.8", *settings, "-n", "too-large"]
    program = ROOT / "tests" / "support" / "one_card.py"
    refused = run(script(program, small), work, check=False)
    assert refused.returncode == 2, refused.stderr
    assert "out of memory with 400 patches of 32 x 32 at a time" in refused.stderr
    assert "Traceback" not in refused.stderr
    advice = refused.stderr.split("--accumulate ")[-1].split()[0]
    assert advice.isdecimal(), refused.stderr
    run(script(program, [*small, "--accumulate", advice]), work)
