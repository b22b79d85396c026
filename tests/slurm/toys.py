"""Small jobs for the cluster tests: they stop, die and continue as training does, without torch."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def greet(arguments: Sequence[str]) -> int:
    """Write this rank's place into `<folder>/<rank>.txt`."""
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    (folder / f"{rank}.txt").write_text(" ".join([*arguments[1:], os.environ.get("CUDA_VISIBLE_DEVICES", "no GPUs")]))
    return 0


def fail(arguments: Sequence[str]) -> int:
    """End like a job with bad input."""
    print("error: the masks are missing", file=sys.stderr, flush=True)
    return 2


def count(arguments: Sequence[str]) -> int:
    """Count to `last` in the file `<folder>/steps/<n>`, one step each `pause` s; stop with 75 when told to, then go on.

    A signal is obeyed at the next step, as in training; the count is the checkpoint.
    """
    folder, last, pause = Path(arguments[0]), int(arguments[1]), float(arguments[2])
    told = []
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda received, frame: told.append(received))
    steps = folder / "steps"
    steps.mkdir(parents=True, exist_ok=True)
    done = max((int(path.name) for path in steps.iterdir()), default=0)
    print(f"starting at {done}", flush=True)
    while done < last:
        time.sleep(pause)
        if told:
            (steps / str(done)).touch()
            return 75
        done += 1
        if os.environ.get("SLURM_PROCID", "0") == "0":
            (steps / str(done)).touch()
    return 0


def plod(arguments: Sequence[str]) -> int:
    """Work without handlers of its own."""
    print("start", flush=True)
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
    if os.environ["SLURM_PROCID"] == "1":
        raise ValueError("the bug")
    raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234")
