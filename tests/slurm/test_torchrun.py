"""The agent that starts the ranks of one machine."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

from segdist.core.exit_codes import STOPPED
from slurm.torchrun import run_here
from tests.support.programs import processes

RANK = "import time; time.sleep(300)"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("started", [1, 2])
def test_a_signal_while_the_ranks_are_started_leaves_none_running(
    started: int, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks: list[int] = []

    class Interrupted(subprocess.Popen[bytes]):
        """The signal comes right after the process was started, before the agent knows it."""

        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            ranks.append(self.pid)
            if len(ranks) == started:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(subprocess_handler, "Popen", Interrupted)
    assert run_here([sys.executable, "-c", RANK], 2) == STOPPED
    assert len(ranks) == started
    assert not list(processes(RANK, Path.cwd()))
