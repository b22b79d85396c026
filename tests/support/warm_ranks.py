"""Ranks forked from a process that has torch imported already: the real program, without seconds of imports per rank.

For tests of what ranks compute. How they are started is tested with torchrun.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import runpy
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from segdist.core.exit_codes import FINISHED, STOPPED
from tests.support.programs import environment, free_port

_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(["jobs.train", "segdist.training.job", "torch._dynamo"])


class WarmRanks:
    """One start of a job on several ranks, which meet as under torchrun.

    Args:
        program: the job's file.
        log: gets the output of all ranks.
    """

    def __init__(self, program: Path, arguments: Sequence[str], ranks: int, cwd: Path, log: Path) -> None:
        port = free_port()
        self._log = log
        self._processes = []
        for rank in range(ranks):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environ = environment(**{name: str(value) for name, value in (place | meeting).items()})
            process = _FORKING.Process(target=_rank, args=(program, list(arguments), cwd, log, environ))
            process.start()
            self._processes.append(process)

    @property
    def running(self) -> bool:
        """Whether any rank has not ended yet."""
        return any(process.is_alive() for process in self._processes)

    def terminate(self) -> None:
        """SIGTERM to all ranks."""
        for process in self._processes:
            process.terminate()

    def kill(self) -> None:
        """SIGKILL to all ranks, as a dying node would do it; returns once they have ended."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()

    def wait(self, seconds: float = 300) -> int:
        """The exit code of all ranks, once they have ended.

        Raises:
            AssertionError: a rank failed, or they took too long; the others are killed.
        """
        end = time.monotonic() + seconds
        codes: set[int | None] = {None}
        while None in codes and codes <= {None, FINISHED, STOPPED} and time.monotonic() < end:
            multiprocessing.connection.wait([p.sentinel for p in self._processes if p.is_alive()], timeout=1)
            codes = {process.exitcode for process in self._processes}
        self.kill()
        assert codes in ({FINISHED}, {STOPPED}), f"exit codes {codes}\n{self._log.read_text()[-5000:]}"
        return FINISHED if codes == {FINISHED} else STOPPED


@contextlib.contextmanager
def warm_ranks(program: Path, arguments: Sequence[str], ranks: int, cwd: Path, log: Path) -> Iterator[WarmRanks]:
    """Start them; those still running at the end of the block are killed."""
    started = WarmRanks(program, arguments, ranks, cwd, log)
    try:
        yield started
    finally:
        started.kill()


def _rank(program: Path, arguments: list[str], cwd: Path, log: Path, environ: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    with log.open("ab") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.argv = [str(program), *arguments]
    runpy.run_path(str(program), run_name="__main__")
