"""Run torchrun's agent in this process: it starts this machine's ranks as child processes and watches them.

On a cluster, this is for sites that allow only one task per node, or to restart failed ranks without going through the
queue (`[environment] SEGDIST_MAX_RESTARTS = "3"` in the profile). Otherwise one Slurm task per rank is better: it stops
within tenths of a second and starts a few seconds sooner.

It runs in this process because torchrun's command line only prints how each rank ended, and prints a traceback on
every stop.
"""

import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from submitit import JobEnvironment

from segdist.core.exit_codes import FAILED, FINISHED, STOPPED
from segdist.core.json_values import Keywords
from segdist.core.launcher import note_reason, signal_reason
from segdist.core.terminal import warn
from slurm.children import children
from slurm.requeue import Comeback

LAST_WAIT = 5.0
"""Seconds to wait for killed ranks; one that hangs in the kernel (a lost GPU or file server) can take forever."""


def run_torchrun(
    entry: str, arguments: list[str], job: JobEnvironment, ranks_per_node: int, port: int, comeback: Comeback
) -> int:
    """Run `entry(arguments)` on `ranks_per_node` ranks of this node and on those of the job's other nodes.

    Returns the job's exit code: STOPPED if a rank returned it or this process was told to stop.
    """
    module, _, function = entry.partition(":")
    call = f"import sys, importlib; sys.exit(importlib.import_module({module!r}).{function}(sys.argv[1:]))"
    settings = {
        "min_nodes": job.num_nodes,
        "max_nodes": job.num_nodes,
        "nproc_per_node": ranks_per_node,
        "run_id": job.job_id,
        "rdzv_backend": "static",
        "rdzv_endpoint": f"{job.hostnames[0]}:{port}",
        "rdzv_configs": {"rank": job.node, "timeout": 900},
        "max_restarts": int(os.environ.get("SEGDIST_MAX_RESTARTS", "0")),
        "monitor_interval": 0.5,
    }
    return _run(settings, [sys.executable, "-u", "-c", call, *arguments], lambda: comeback.told_to_stop)


def run_here(command: Sequence[str], world_size: int) -> int:
    """Run `command` on `world_size` ranks of this machine, as `torchrun --standalone` does, and wait for it to end.

    SIGINT and SIGTERM are forwarded to the ranks, which have half a minute to end; a second signal ends them
    immediately.

    Returns the exit code of the rank that failed first, STOPPED after a signal, otherwise 0.
    """
    settings: Keywords = {
        "min_nodes": 1,
        "max_nodes": 1,
        "nproc_per_node": world_size,
        "run_id": uuid.uuid4().hex,
        "rdzv_backend": "c10d",
        "rdzv_endpoint": "localhost:0",
        "max_restarts": 0,
    }
    # The agent announces each signal that it forwards, but the job reports its own outcome.
    from torch.distributed.launcher.api import LaunchConfig

    if hasattr(LaunchConfig, "signals_to_handle"):  # older torch has no such setting; a second signal is slower there
        settings["signals_to_handle"] = "SIGQUIT"  # the others are handled here
    for name in ("agent.server.api", "multiprocessing.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    with _signals_handed_on():
        return _run(settings, command, lambda: False)


def _run(settings: Keywords, command: Sequence[str], told_to_stop: Callable[[], bool]) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    try:
        with _no_rank_left():
            elastic_launch(LaunchConfig(**settings), command[0])(*command[1:])
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        # A rank killed by the signal before it set its handler has nothing to save yet.
        if told_to_stop() or STOPPED in codes:
            return STOPPED
        rank, first = error.get_first_failure()
        if first.exitcode < 0:
            note_reason(signal_reason(-first.exitcode), rank)
            warn(f"rank {rank}: {signal_reason(-first.exitcode)}")
        return next((code for code in codes if code > 0), FAILED)
    except SignalException:  # a signal reached the agent
        return STOPPED
    # If torchrun can restart workers, a stopped job returns 0 so that it isn't restarted.
    return STOPPED if told_to_stop() else FINISHED


@contextmanager
def _no_rank_left() -> Iterator[None]:
    """Kill the ranks that the agent left running.

    The agent only knows its ranks once it has started the last one: a signal before that leaves the first ones waiting
    for the others. They have nothing to save yet.
    """
    before = set(children(os.getpid()))
    try:
        yield
    finally:
        left = set(children(os.getpid())) - before
        for child in left:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        deadline = time.monotonic() + LAST_WAIT
        for child in left:
            with suppress(ChildProcessError):
                while os.waitpid(child, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
                    time.sleep(0.01)


@contextmanager
def _signals_handed_on() -> Iterator[None]:
    """The first signal ends the agent its own way, forwarding it to the ranks; a second one ends everything
    immediately."""
    from torch.distributed.elastic.multiprocessing.api import SignalException

    seen: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        if seen:
            for child in children(os.getpid()):
                with suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGKILL)  # each rank leads a process group that includes its children
            os._exit(128 + number)
        seen.append(number)
        raise SignalException(f"signal {number}", sigval=signal.Signals(number))

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
