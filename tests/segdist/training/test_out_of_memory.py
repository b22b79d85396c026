"""A batch that doesn't fit into memory ends with a message that names settings that do."""

import re
import resource
import subprocess
import weakref
from pathlib import Path

import pytest
import torch

from segdist.core.errors import UserError
from segdist.model.precision import Precision
from segdist.model.unet import UNet
from segdist.ranks.out_of_memory import largest_that_fits
from segdist.training.config import LossConfig
from segdist.training.losses import Loss
from segdist.training.out_of_memory import explain_out_of_memory, training_attempt
from shards.build.config import PatchesConfig
from tests.support.programs import QUIET, environment, job
from tests.support.sets import tiny_set

LIMIT = 1200 << 20
"""Bytes of address space: enough for torch and a small batch."""


@pytest.mark.parametrize(("room", "below", "fitting"), [(5, 16, 4), (1, 3, 1), (0, 16, 0), (7, 7, 4), (9, 1, 0)])
def test_the_largest_half_that_fits_is_found(room: int, below: int, fitting: int) -> None:
    def attempt(count: int) -> None:
        if count > room:
            raise torch.OutOfMemoryError("no")

    assert largest_that_fits(attempt, below) == fitting


def test_other_errors_are_not_mistaken_for_a_lack_of_memory() -> None:
    def attempt(count: int) -> None:
        raise RuntimeError("shapes don't match")

    with pytest.raises(RuntimeError, match="shapes"):
        largest_that_fits(attempt, 8)


def test_memory_held_by_the_first_of_two_errors_is_also_freed() -> None:
    """Analyzing an error can itself run out of memory, while the first error's frames hold the tensors."""

    class Tensor:
        pass

    held: list[weakref.ref[Tensor]] = []

    def step() -> None:
        tensor = Tensor()
        held.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("no")

    def look_into_it() -> None:
        try:
            step()
        except torch.OutOfMemoryError:
            raise MemoryError from None

    def attempt(count: int, patch: int) -> None:
        del count, patch
        assert held[0]() is None

    with (
        pytest.raises(UserError, match="--accumulate 2 fits"),
        explain_out_of_memory(16, 1, patch=96, multiple=16, world_size=1, try_out=attempt),
    ):
        look_into_it()


@pytest.mark.parametrize(
    ("room", "says"),
    [
        (10 * 96 * 96, "--accumulate 2 fits: 8 patches at a time, the same global batch"),
        (50 * 50, "one of 48 x 48 does: make a set with --patches.size 48, and train with --accumulate 16"),
        (15 * 15, "not even one of the smallest patches fits: use a lower --model.width"),
    ],
)
def test_settings_that_fit_are_named(room: int, says: str) -> None:
    def attempt(count: int, patch: int) -> None:
        if count * patch**2 > room:
            raise torch.OutOfMemoryError("no")

    with (
        pytest.raises(UserError, match="out of memory with 16 patches of 96 x 96 at a time") as caught,
        explain_out_of_memory(16, 1, patch=96, multiple=16, world_size=1, try_out=attempt),
    ):
        attempt(16, 96)
    assert says in str(caught.value)


def test_an_exact_run_is_offered_a_smaller_grain() -> None:
    def attempt(count: int, patch: int) -> None:
        if count > 3:
            raise torch.OutOfMemoryError("no")

    with (
        pytest.raises(UserError, match=r"4 patches of 96 x 96 at a time \(--grain 4\); --grain 2 fits; .* --name"),
        explain_out_of_memory(32, 1, patch=96, multiple=16, world_size=2, try_out=attempt, grain=4),
    ):
        attempt(4, 96)


def train(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`segdist train` with an address space of `LIMIT` bytes."""
    command = [*job("train", ["--preset", "paper", "--steps", "2", "--model.width", "32", *QUIET]), *options]
    while True:
        done = subprocess.run(
            command,
            cwd=folder,
            # Blocks kept by malloc count toward the limit.
            env=environment(MALLOC_ARENA_MAX="1", MALLOC_TRIM_THRESHOLD_="131072"),
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)),
        )
        # If a new thread finds no memory at all, glibc may kill the process, which no program can prevent.
        if "cannot allocate memory for thread-local data" not in done.stderr:
            return done


def test_a_rank_can_try_sizes_alone_despite_batch_norm_over_all_ranks() -> None:
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(UNet(1, 3, width=4, depth=2))
    attempt = training_attempt(model, Loss(LossConfig(), torch.ones(3)), Precision("fp32", "for a test"), channels=1)
    attempt(2, 16)  # on a CPU, where a norm over all ranks can't run
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules())


@pytest.mark.slow
def test_the_suggested_accumulation_fits(tmp_path: Path) -> None:
    tiny_set(tmp_path / "data", patches=PatchesConfig(size=32, per_image=10))
    batch = ("-f", "tiny", "-b", "200")
    refused = train(tmp_path, *batch)
    assert refused.returncode == 2, refused.stderr
    assert "out of memory with 200 patches of 32 x 32 at a time (--batch-size 200 over 1 ranks" in refused.stderr
    found = re.search(r"--accumulate (\d+) fits", refused.stderr)
    assert found is not None
    fits = train(tmp_path, *batch, "--accumulate", found[1])
    assert fits.returncode == 0, fits.stderr


@pytest.mark.slow
def test_the_suggested_patch_fits(tmp_path: Path) -> None:
    tiny_set(tmp_path / "data", patches=PatchesConfig(size=1024, per_image=1))
    refused = train(tmp_path, "-f", "tiny", "-b", "2")
    assert refused.returncode == 2, refused.stderr
    found = re.search(r"not even one fits, but one of (\d+) x \1 does", refused.stderr)
    assert found is not None, refused.stderr
    tiny_set(tmp_path / "data", "smaller", patches=PatchesConfig(size=int(found[1]), per_image=1))
    fits = train(tmp_path, "-f", "smaller", "-b", "2", "--accumulate", "2")
    assert fits.returncode == 0, fits.stderr
