"""Each rank's own time per step, before it waits for others; and how one rank's problem reaches all."""

import os
import time
from pathlib import Path

import pytest
import torch

from segdist.core.errors import UserError
from segdist.model.unet import UNet
from segdist.ranks.own_time import OwnTime
from segdist.ranks.process_group import Ranks
from segdist.runs.record import read_run
from segdist.runs.report_data import rank_times
from tests.support.programs import QUIET, TINY_NET, job, run
from tests.support.sets import tiny_set
from tests.support.thread_ranks import on_ranks

SLEEP = 0.25
"""Extra seconds in each forward pass of rank 1."""


class SlowOnRank1(UNet):
    """A U-Net that is slower on rank 1."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes, width=4, depth=2, norm="group")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """As `UNet`."""
        if os.environ.get("RANK") == "1":
            time.sleep(SLEEP)
        return super().forward(images)


def test_the_mean_covers_the_steps_since_the_last_query() -> None:
    clock = OwnTime(torch.device("cpu"))
    assert clock.mean() == 0
    for _ in range(2):
        clock.begin()
        time.sleep(0.02)
        clock.end()
    time.sleep(0.2)  # time between steps doesn't count
    assert clock.mean() >= 0.02
    assert clock.mean() == 0


@pytest.mark.slow
@pytest.mark.parametrize("exact", [[], ["--exact", "--grain", "2"]])
def test_the_slow_rank_is_distinguished_from_the_one_that_waits(tmp_path: Path, exact: list[str]) -> None:
    tiny_set(tmp_path / "data")
    model = ["--preset", "paper", "--model.factory", f"{__name__}:SlowOnRank1"]
    steps = ["-f", "tiny", "-n", "slow", "-b", "8", "--steps", "6", "--log-every", "2", "--no-check"]
    run(job("train", [*steps, *model, *exact, *QUIET], ranks=2), tmp_path)
    found = read_run(tmp_path / "runs" / "slow")
    assert [row["slowest_rank"] for row in found.train] == [1, 1, 1]
    assert all(row["rank_s_max"] >= SLEEP > 0 for row in found.train)
    assert all(0 < row["rank_s_median"] < row["rank_s_max"] for row in found.train)
    (first, seconds, ratio), (second, _, _) = rank_times(found)
    assert (first, second) == (1, 0)
    assert seconds >= SLEEP
    assert ratio > 1


@pytest.mark.slow
def test_a_single_rank_has_no_spread(tmp_path: Path) -> None:
    tiny_set(tmp_path / "data")
    run(job("train", ["-f", "tiny", "-n", "one", "-b", "4", "--steps", "2", *TINY_NET, *QUIET]), tmp_path)
    found = read_run(tmp_path / "runs" / "one")
    assert "slowest_rank" not in found.train[0]
    assert "rank_seconds" not in found.summary
    assert rank_times(found) == []


def test_a_problem_on_one_rank_is_raised_on_all() -> None:
    def work(ranks: Ranks) -> str:
        def look() -> int:
            if ranks.rank >= 1:
                raise UserError(f"shard {ranks.rank} is damaged")
            return ranks.rank

        try:
            return str(ranks.on_all(look))
        except UserError as error:
            return str(error)

    assert on_ranks(3, work) == ["shard 1 is damaged"] * 3
    assert on_ranks(3, lambda ranks: ranks.on_all(lambda: 10 * ranks.rank)) == [0, 10, 20]
