"""Small jobs for the cluster tests: they stop, die and continue as training does, without torch."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from jobs.entry import run_job
from segdist.core.errors import UserError


def greet(arguments: Sequence[str]) -> int:
    """Write this rank's place into `<folder>/<rank>.txt`, once there is no file `<folder>/hold`."""
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
    """Count in the file `<folder>/steps/<n>`, a step each 0.3 s, until there is a file `<folder>/enough`.

    Told to stop, it returns 75 at the next step, as training does; the count is the checkpoint from which it goes on.
    That last step takes as many seconds as a second argument says, and leaves a file `<folder>/saved`.
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
    """Work without handlers of its own."""
    print("plodding", flush=True)
    for _ in range(1000):
        time.sleep(1)
    return 0


def lose_peers_once(arguments: Sequence[str]) -> int:
    """In the first start every rank meets the error of a peer that is gone."""
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234")
    return 0


def lose_peers_by_code_once(arguments: Sequence[str]) -> int:
    """The same, from a job that has shown its traceback itself and tells by its exit code."""
    return 76 if os.environ.get("SLURM_RESTART_COUNT", "0") == "0" else 0


def one_rank_fails(arguments: Sequence[str]) -> int:
    """Rank 1 has a bug; the other ranks see only that it is gone."""
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
    """The rank that the second argument names dies of the signal that the third names; the others wait for ever."""
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    if rank == arguments[1]:
        os.kill(os.getpid(), getattr(signal, arguments[2]))
    if len(arguments) > 3:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234")
    return plod(arguments)
