"""Late ranks are named by the others, and each node keeps a file with the progress of its ranks."""

import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from segdist.core import paths
from segdist.core.exit_codes import LOST_PEERS
from segdist.ranks.launchers import RankEnvironment
from segdist.ranks.process_group import record_collectives
from segdist.ranks.watch import Place, Watch, _key
from tests.support.programs import QUIET, ROOT, TINY_NET, start, wait_until
from tests.support.sets import tiny_set

TIMEOUT = 20.0
"""Seconds that the ranks in these tests wait for each other."""


def place(rank: int, step: int, beat: int = 1) -> Place:
    return Place(rank, "here", 100 + rank, beat, step, "forward pass")


class Others:
    """A store that holds the places of other ranks."""

    def __init__(self, *places: Place) -> None:
        self.store = dist.HashStore()
        for found in places:
            self.store.set(_key(found.rank), json.dumps(vars(found)))


def late(world_size: int, places: dict[int, Place], beating: set[int]) -> list[str]:
    watch = Watch(RankEnvironment("torchrun", 0, 0, world_size, world_size), None, timedelta(seconds=60))
    try:
        return watch._late(places, beating)
    finally:
        watch.close()


def test_a_rank_without_a_heartbeat_is_named() -> None:
    places = {0: place(0, 7), 1: place(1, 6), 2: place(2, 7)}
    assert late(3, places, {0, 2}) == ["rank 1 (process 101 on here), step 6, forward pass, without a sign of life"]


def test_a_rank_that_never_started_is_named() -> None:
    assert late(3, {0: place(0, 0), 2: place(2, 0)}, {0, 2}) == ["rank 1, which was never heard from"]


def test_among_live_ranks_the_one_behind_is_named() -> None:
    places = {0: place(0, 7), 1: place(1, 6), 2: place(2, 7)}
    assert late(3, places, {0, 1, 2}) == ["rank 1 (process 101 on here), step 6, forward pass"]


def test_no_rank_is_blamed_when_all_do_the_same_long_work() -> None:
    assert late(2, {0: place(0, 7), 1: place(1, 7)}, {0, 1}) == []


def test_rank_0_is_blamed_for_an_unresponsive_store(capsys: pytest.CaptureFixture[str]) -> None:
    class Silent:
        def set(self, *_: str) -> None:
            raise RuntimeError("no answer")

        check = get = set

    watch = Watch(RankEnvironment("torchrun", 1, 1, 2, 2), Silent(), timedelta(seconds=1))  # type: ignore[arg-type]
    try:
        wait_until(lambda: watch._looked_around, 20)
        time.sleep(0.5)
    finally:
        watch.close()
    assert "for rank 0, which hosts the ranks' store and doesn't respond. Waiting: rank 1" in capsys.readouterr().err


def test_a_rank_that_makes_progress_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    others = Others(place(1, 3))
    watch = Watch(RankEnvironment("torchrun", 0, 0, 2, 2), others.store, timedelta(seconds=1))
    for step in range(15):
        watch.at("forward pass", step)
        time.sleep(0.1)
    watch.close()
    assert "waited" not in capsys.readouterr().err


def test_a_node_keeps_its_file_while_the_job_runs(tmp_path: Path) -> None:
    others = Others(Place(1, os.uname().nodename, 101, 1, 3, "sum of gradients"))
    watch = Watch(RankEnvironment("torchrun", 0, 0, 2, 2), others.store, timedelta(seconds=1))
    watch.at("forward pass", 5)
    folder = tmp_path / paths.HEARTBEATS
    folder.mkdir()
    (folder / "a-node-of-an-earlier-start.json").write_text("{}")
    watch.keep_file(tmp_path)

    def contents() -> list[tuple[object, ...]]:
        found = [json.loads(file.read_text()) for file in folder.glob("*.json")]
        return [(values["ranks"], values["step"], values["doing"]) for values in found]

    wait_until(lambda: contents() == [([0, 1], 3, "sum of gradients")], 20)
    watch.close()
    assert not folder.exists()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_nccl_collectives_are_recorded_by_default(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_NCCL_DUMP_ON_TIMEOUT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("TORCH_NCCL_DUMP_ON_TIMEOUT", "0")
    record_collectives(torch.device(device))
    assert os.environ.get("TORCH_FR_BUFFER_SIZE") == ("2000" if device == "cuda" else None)
    assert os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "0"


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [1, 0])
def test_a_rank_frozen_during_training_is_named(tmp_path: Path, frozen: int) -> None:
    tiny_set(tmp_path / "data")
    program = [str(ROOT / "tests" / "support" / "impatient.py"), str(TIMEOUT), "train"]
    settings = ["-f", "tiny", "-n", "late", "-b", "8", "--steps", "100000", "--log-every", "5", *TINY_NET, *QUIET]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 10000), "WORLD_SIZE": "2"}
    log = tmp_path / "log"
    ranks = [
        start(
            [sys.executable, *program, *settings], tmp_path, log,
            **address, RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2",
        )
        for rank in range(2)
    ]  # fmt: skip
    run_dir = tmp_path / "runs" / "late"
    try:
        wait_until(lambda: (run_dir / "metrics.jsonl").exists() and (run_dir / "metrics.jsonl").stat().st_size, 120)
        wait_until(lambda: any((run_dir / paths.HEARTBEATS).glob("*.json")), 60)
        (heartbeat,) = (run_dir / paths.HEARTBEATS).glob("*.json")
        assert json.loads(heartbeat.read_text())["ranks"] == [0, 1]
        ranks[frozen].send_signal(signal.SIGSTOP)
        assert ranks[1 - frozen].wait(120) == LOST_PEERS, log.read_text()
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    said = log.read_text()
    if frozen:
        assert f"for rank 1 (process {ranks[1].pid} on " in said
        assert ", without a sign of life. Waiting: rank 0" in said
    else:
        assert "for rank 0, which hosts the ranks' store and doesn't respond. Waiting: rank 1" in said
    assert said.count("the ranks have waited") == 1
