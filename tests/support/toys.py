"""Small jobs for the cluster tests, which stop, die and resume like training, without torch."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from jobs.entry import run_job
from segdist.core.errors import UserError


def greet(arguments: Sequence[str]) -> int:
    """Write the arguments and visible GPUs to `<folder>/<rank>.txt` once there is no file `<folder>/hold`."""
    folder = Path(arguments[0])
    while (folder / "hold").exists():
        time.sleep(0.1)
    folder.mkdir(parents=True, exist_ok=True)
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    (folder / f"{rank}.txt").write_text(" ".join([*arguments[1:], os.environ.get("CUDA_VISIBLE_DEVICES", "no GPUs")]))
    return 0


def fail(arguments: Sequence[str]) -> int:
    """End like a job with bad input."""

    def refuse(argv: object) -> int:
        raise UserError("the masks are missing")

    return run_job(refuse)


def count(arguments: Sequence[str]) -> int:
    """Count by creating `<folder>/steps/<n>` every 0.3 s until there is a file `<folder>/enough`.

    When told to stop, it returns 75 at the next step, like training; the count is its checkpoint. That last step takes
    as many seconds as the second argument gives and creates `<folder>/saved`.
    """
    folder = Path(arguments[0])
    told = []
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda received, frame: told.append(received))
    steps = folder / "steps"
    steps.mkdir(parents=True, exist_ok=True)
    done = max((int(path.name) for path in steps.iterdir()), default=0)
    print(f"counting from {done} on {os.environ.get('SLURM_JOB_NUM_NODES', '1')} nodes", flush=True)
    while not (folder / "enough").exists():
        time.sleep(0.3)
        if told:
            time.sleep(float(arguments[1]) if len(arguments) > 1 else 0)
            (steps / str(done)).touch()
            (folder / "saved").touch()
            return 75
        done += 1
        if os.environ.get("SLURM_PROCID", "0") == "0":
            (steps / str(done)).touch()
    return 0


def plod(arguments: Sequence[str]) -> int:
    """Work without signal handlers."""
    print("plodding", flush=True)
    for _ in range(1000):
        time.sleep(1)
    return 0


def lose_peers_once(arguments: Sequence[str]) -> int:
    """In the first start, every rank gets the error of a lost peer."""
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234")
    return 0


def lose_peers_by_code_once(arguments: Sequence[str]) -> int:
    """The same, reported by exit code instead of an exception."""
    return 76 if os.environ.get("SLURM_RESTART_COUNT", "0") == "0" else 0


def one_rank_fails(arguments: Sequence[str]) -> int:
    """Rank 1 has a bug; the other ranks see only a lost peer."""
    failing = Path(arguments[0]) / "failing"
    if os.environ["SLURM_PROCID"] == "1":
        failing.touch()
        raise ValueError("the bug")
    while not failing.exists():
        time.sleep(0.1)
    raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234")


def crash(arguments: Sequence[str]) -> int:
    """End like a job with a bug in it."""

    def buggy(argv: object) -> int:
        raise ZeroDivisionError("division by zero\nin two lines")

    return run_job(buggy)


def die(arguments: Sequence[str]) -> int:
    """The rank named by the second argument dies from the signal named by the third; the others wait forever."""
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    if rank == arguments[1]:
        os.kill(os.getpid(), getattr(signal, arguments[2]))
    if len(arguments) > 3:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234")
    return plod(arguments)
