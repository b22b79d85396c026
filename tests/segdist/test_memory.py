"""A batch that doesn't fit the memory ends with settings that do."""

import re
import resource
import subprocess
from pathlib import Path

import pytest
import torch

from segdist.memory import largest_that_fits
from tests.helpers import QUIET, environment, job, tiny_set

LIMIT = 1200 << 20
"""Bytes of address space: enough for torch and a small batch."""


@pytest.mark.parametrize(("room", "below", "fitting"), [(5, 16, 4), (1, 3, 1), (0, 16, 0), (7, 7, 4), (9, 1, 0)])
def test_the_largest_half_that_fits_is_found(room: int, below: int, fitting: int) -> None:
    def attempt(count: int) -> None:
        if count > room:
            raise torch.OutOfMemoryError("no")

    assert largest_that_fits(attempt, below) == fitting


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def attempt(count: int) -> None:
        raise RuntimeError("shapes don't match")

    with pytest.raises(RuntimeError, match="shapes"):
        largest_that_fits(attempt, 8)


@pytest.mark.slow
def test_what_the_message_says_fits(tmp_path: Path) -> None:
    tiny_set(tmp_path / "data")
    command = job("train", ["-f", "tiny", "--steps", "2", "-b", "200", "--model.width", "32", *QUIET])

    def train(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *more],
            cwd=tmp_path,
            # The limit counts addresses, and blocks that malloc keeps have some.
            env=environment(MALLOC_ARENA_MAX="1", MALLOC_TRIM_THRESHOLD_="131072"),
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)),
        )

    refused = train()
    assert refused.returncode == 2, refused.stderr
    assert "out of memory with 200 patches of 32 x 32 at a time (--batch-size 200 over 1 ranks" in refused.stderr
    found = re.search(r"--accumulate (\d+) fits", refused.stderr)
    assert found is not None
    fits = train("--accumulate", found[1])
    assert fits.returncode == 0, fits.stderr
