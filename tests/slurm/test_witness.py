"""The user sees why a job failed, whatever ended it; tested without Slurm."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobs import show_queue
from segdist.core.errors import UserError
from segdist.core.launcher import signal_reason
from slurm.pipeline import Link, submit_chain
from slurm.standing import standings
from slurm.submit import Order
from tests.support.cluster import profile, toy
from tests.support.programs import environment, processes, wait_until

pytestmark = pytest.mark.timeout(120)


def fails(folder: Path, *entry: str, **profile_changes: Any) -> str:
    """Run a failing job of one link; return the message to the user."""
    task = toy(entry[0], folder, *entry[1:], torchrun=profile_changes.pop("torchrun", 0))
    link = Link(Order("job", (task,), profile(**profile_changes), folder / "slurm"), f"{folder}/product")
    with pytest.raises(UserError) as error:
        submit_chain([link], "local", lambda line: None)
    return str(error.value)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (("fail",), "the masks are missing"),
        (("crash",), "ZeroDivisionError: division by zero in two lines"),
        pytest.param(
            ("die", "0", "SIGKILL"),
            "killed by SIGKILL (the system was out of memory, or someone killed it)",
            marks=pytest.mark.slow,
        ),
        pytest.param(("die", "0", "SIGSEGV"), "killed by SIGSEGV (a crash in compiled code)", marks=pytest.mark.slow),
    ],
)
def test_the_reason_is_reported_and_stays_in_the_queue(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    entry: tuple[str, ...],
    reason: str,
) -> None:
    run = tmp_path / "runs" / "cells"
    assert f"job failed: {reason}\n" in fails(run, *entry)
    (standing,) = standings(run / "slurm")
    assert (standing.state, standing.reason, standing.starts) == ("FAILED", reason, 1)
    monkeypatch.chdir(tmp_path)
    assert show_queue.main([]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("cells")]
    assert line.rstrip().endswith(reason)


@pytest.mark.slow
def test_a_killed_rank_is_the_reason_not_the_errors_of_its_peers(tmp_path: Path) -> None:
    told = fails(tmp_path, "die", "1", "SIGKILL", "peers notice", tasks_per_node=2)
    assert f"job failed: rank 1: {signal_reason(signal.SIGKILL)}\n" in told


@pytest.mark.slow
def test_a_killed_rank_of_torchrun_is_also_named(tmp_path: Path) -> None:
    told = fails(tmp_path, "die", "1", "SIGSEGV", torchrun=2)
    assert f"job failed: rank 1: {signal_reason(signal.SIGSEGV)}\n" in told


@pytest.mark.parametrize("kernel", [True, False])
def test_a_rank_exits_with_its_launcher(tmp_path: Path, kernel: bool) -> None:
    rank = (
        "import os, sys, time; from segdist.core import launcher\n"
        f"if not {kernel}: launcher._killed_by_kernel = lambda: False; launcher.LOOK_EVERY = 0.05\n"
        "launcher.end_with_launcher(); open('ready', 'w').close(); time.sleep(600)"
    )
    code = (
        "import os, subprocess, sys, time; os.environ['SEGDIST_LAUNCHER'] = str(os.getpid())\n"
        f"subprocess.Popen([sys.executable, '-c', {rank!r}, 'the rank']); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment()) as launcher:
        wait_until((tmp_path / "ready").exists)
        assert list(processes("the rank", tmp_path))
        launcher.kill()
    wait_until(lambda: not list(processes("the rank", tmp_path)))


def test_a_rank_started_by_a_shell_outlives_it(tmp_path: Path) -> None:
    rank = (
        "import time; from pathlib import Path; from segdist.core.launcher import end_with_launcher\n"
        "end_with_launcher(); Path('ready').touch()\n"
        "while not Path('enough').exists(): time.sleep(0.05)\n"
        "Path('done').touch()"
    )
    command = f'"{sys.executable}" -c "{rank}" & wait'
    with subprocess.Popen(["bash", "-c", command], cwd=tmp_path, env=environment()) as shell:
        wait_until((tmp_path / "ready").exists)
        shell.kill()
        shell.wait()
        time.sleep(0.2)
        (tmp_path / "enough").touch()
        wait_until((tmp_path / "done").exists)
