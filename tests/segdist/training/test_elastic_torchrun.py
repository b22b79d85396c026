"""`torchrun --nnodes=1:2` loses a node and gets one back in the middle of an exact run."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from segdist.runs.record import read_rows
from tests.support.braked import BRAKE, Brake
from tests.support.programs import QUIET, job, kill_all, processes, run, start, wait_until
from tests.support.states import digest

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
    command = job("train", ["-f", "tiny", "--name", name, *SETTINGS], torchrun=torchrun)
    # Without it torchrun 2.13 waits in vain for keys of the store when a node joins.
    environ = {BRAKE: str(work / "brake"), "NODE": letter, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return start(command, work, work / f"{name}-{letter}.log", **environ)


def test_a_node_that_dies_and_comes_back_changes_no_bit(work: Path) -> None:
    run(job("train", ["-f", "tiny", "--name", "alone", *SETTINGS]), work)
    brake, events = Brake(work / "brake"), work / "runs" / "elastic" / "events.jsonl"
    brake.set(0.1)

    def ranks_seen() -> list[int]:
        return [row["ranks"] for row in read_rows(events) if "ranks" in row] if events.exists() else []

    def checkpoint_after(step: int) -> bool:
        steps = [int(path.stem[5:]) for path in (work / "runs" / "elastic" / "checkpoints").glob("step-*.pt")]
        return max(steps, default=0) > step

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    first, second = node("elastic", "a", work, port), node("elastic", "b", work, port)
    try:
        wait_until(lambda: ranks_seen() == [2] and checkpoint_after(0), 120)
        for number, environ in list(processes("elastic", work)):
            if b"NODE=b" in environ.split(b"\0"):
                os.kill(number, signal.SIGKILL)
        second.wait(60)
        wait_until(lambda: ranks_seen() == [2, 1] and checkpoint_after(10), 120)
        second = node("elastic", "b", work, port)
        wait_until(lambda: ranks_seen() == [2, 1, 2], 120)
        brake.release()
        assert first.wait(180) == 0, (work / "elastic-a.log").read_text()
        assert second.wait(60) == 0, (work / "elastic-b.log").read_text()
    finally:
        kill_all(first, "elastic", work)
    assert digest(work / "runs" / "elastic") == digest(work / "runs" / "alone")
