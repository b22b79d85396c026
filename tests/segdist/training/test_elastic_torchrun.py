"""`torchrun --nnodes=1:2` loses a node and gets one back in the middle of an exact run."""

import subprocess
from pathlib import Path

import pytest

from tests.support.braked import BRAKE, Brake
from tests.support.programs import QUIET, free_port, job, kill_all, run, start, wait_until
from tests.support.states import digest, last_step, ranks_of_starts

pytestmark = pytest.mark.slow

SETTINGS = [
    *("-b", "16", "--grain", "4", "--steps", "60", "--exact", "--threads", "1", "--checkpoint.every-steps", "5"),
    *("--preset", "paper", "--model.factory", "tests.support.braked:BrakedUNet"),
    *("--model.kwargs", '{"width": 4, "depth": 2}', *QUIET),
]


def node(name: str, letter: str, work: Path, port: int) -> "subprocess.Popen[bytes]":
    """torchrun on one of two nodes, `letter`; both are this machine."""
    torchrun = [
        *("--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=5", "--rdzv-backend=c10d", "--rdzv-id=elastic"),
        # A node waits this long for others before it starts without them. Node a keeps torchrun's records.
        *(f"--rdzv-endpoint=localhost:{port}", f"--rdzv-conf=last_call_timeout=5,is_host={int(letter == 'a')}"),
    ]
    # The group only labels the processes of this node.
    settings = ["-f", "tiny", "--name", name, "--tracking.group", f"node-{letter}", *SETTINGS]
    # Without it torchrun 2.13 waits in vain for keys of the store when a node joins.
    environ = {BRAKE: str(work / "brake"), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return start(job("train", settings, torchrun=torchrun), work, work / f"{name}-{letter}.log", **environ)


def test_a_node_that_dies_and_comes_back_changes_no_bit(work: Path) -> None:
    run(job("train", ["-f", "tiny", "--name", "alone", *SETTINGS]), work)
    brake, folder = Brake(work / "brake"), work / "runs" / "elastic"
    brake.set(0.1)
    port = free_port()
    first, second = node("elastic", "a", work, port), node("elastic", "b", work, port)
    try:
        wait_until(lambda: ranks_of_starts(folder) == [2] and last_step(folder) > 0, 120)
        kill_all(second, "node-b", work)
        wait_until(lambda: ranks_of_starts(folder) == [2, 1] and last_step(folder) > 10, 120)
        second = node("elastic", "b", work, port)
        wait_until(lambda: ranks_of_starts(folder) == [2, 1, 2], 120)
        brake.release()
        assert first.wait(180) == 0, (work / "elastic-a.log").read_text()
        assert second.wait(60) == 0, (work / "elastic-b.log").read_text()
    finally:
        kill_all(first, "elastic", work)
    assert digest(folder) == digest(work / "runs" / "alone")
