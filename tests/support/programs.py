"""Small runs of the real program for tests, which take seconds."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

TINY_NET = ["--preset", "paper", "--model.width", "4", "--model.depth", "2", "--model.norm", "group"]
QUIET = ["--wandb", "off", "--quiet"]
FOLDS = 2
FOLD_TRAINING = {
    "preset": "paper",
    "steps": 12,
    "batch_size": 4,
    "model": {"width": 4, "depth": 2, "norm": "group"},
    "checkpoint": {"every_steps": 3},
}


def job(name: str, arguments: Sequence[str], ranks: int = 1, torchrun: Sequence[str] = ()) -> list[str]:
    """The command of a job: a plain process, or torchrun for several ranks."""
    return script(ROOT / "jobs" / f"{name}.py", arguments, ranks, torchrun)


def cross_validation(name: str, **train: object) -> list[str]:
    """The command of a short cross-validation of the set `tiny`."""
    tables = ["--train", json.dumps(FOLD_TRAINING | train), "--tracking", '{"wandb": "off"}']
    return job("cross_validate", ["-f", "tiny", "--name", name, "--folds", str(FOLDS), "--processes", "1", *tables])


def script(path: Path, arguments: Sequence[str], ranks: int = 1, torchrun: Sequence[str] = ()) -> list[str]:
    """Like `job`, for any Python file."""
    command = [str(path), *arguments]
    if ranks == 1 and not torchrun:
        return [sys.executable, *command]
    launcher = torchrun or ["--standalone", f"--nproc-per-node={ranks}"]
    return [sys.executable, "-m", "torch.distributed.run", *launcher, *command]


def run(command: Sequence[str], cwd: Path, check: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run to the end; a failure shows the output."""
    done = subprocess.run(command, cwd=cwd, env=environment(**environ), capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def start(command: Sequence[str], cwd: Path, log: Path, **environ: str) -> "subprocess.Popen[bytes]":
    """Start in a new process group, with output to `log`."""
    with log.open("ab") as file:
        return subprocess.Popen(
            command, cwd=cwd, env=environment(**environ), stdout=file, stderr=file, start_new_session=True
        )


def processes(word: str, cwd: Path) -> Iterator[tuple[int, bytes]]:
    """Id and environment of processes started in `cwd` with `word` among their arguments.

    torchrun's workers have their own sessions, so a process group does not contain them.
    """
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if word.encode() in words and (folder / "cwd").resolve() == cwd.resolve():
                yield int(folder.name), (folder / "environ").read_bytes()
        except (OSError, ValueError):
            continue  # not a process, or it just ended


def kill_all(process: "subprocess.Popen[bytes]", word: str, cwd: Path) -> None:
    """Send SIGKILL to all processes of a job, as if its node died; wait for the end."""
    for number, _ in list(processes(word, cwd)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    process.wait(timeout=60)


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without launcher variables, and with one thread per rank."""
    environ = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("SLURM_", "TORCHELASTIC_")) and key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | changes


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_until(condition: Any, seconds: float = 60.0) -> None:
    """Poll until `condition()` is true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"did not happen within {seconds} s")
        time.sleep(0.05)
