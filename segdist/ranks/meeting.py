"""How the ranks of a Slurm job find each other: rank 0 opens a free port and writes its address to the job's folder.

The file is `<folder>/.meeting/<job>.<step>.<restart>.json`, so no start of a job uses the address of another job or of
an earlier start. A port computed from the job's number could be in use by someone else.
"""

import json
import os
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from segdist.core.errors import UserError
from segdist.core.files import write_json
from segdist.core.formats import read_version, stamped
from segdist.core.paths import MEETING
from segdist.ranks.launchers import RankEnvironment

FORMAT = 1
LOOK_EVERY = 0.2
"""Seconds between checks for rank 0's address."""
CONNECT = timedelta(seconds=5)
"""How long to try an address before reading the file again."""


def meet(folder: Path, environment: RankEnvironment, timeout: timedelta) -> dist.TCPStore:
    """The store of this start of the ranks, opened by rank 0.

    Args:
        folder: the job's folder, shared between the nodes; created if it doesn't exist.
        timeout: of the store, and how long a rank looks for rank 0's address.

    Raises:
        UserError: the folder can't be written, or rank 0 wrote no address that responds.
    """
    file = _file(folder, environment)
    if environment.rank == 0:
        store = dist.TCPStore(
            environment.master_addr, 0, environment.world_size, is_master=True, timeout=timeout, wait_for_workers=False
        )
        try:
            write_json(file, stamped({"host": environment.master_addr, "port": store.port}, FORMAT))
        except OSError as error:
            raise UserError(
                f"{file}: can't be written ({error.strerror}); the ranks find each other through it"
            ) from None
        return store
    deadline = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < deadline:
        with suppress(OSError):
            os.listdir(file.parent)  # makes network file systems look for new files
        try:
            address = json.loads(file.read_text())
            read_version(address, FORMAT, str(file))
            store = dist.TCPStore(
                address["host"], address["port"], is_master=False, timeout=CONNECT, wait_for_workers=False
            )
        except (OSError, ValueError, dist.DistError):
            time.sleep(LOOK_EVERY)  # not there yet, or rank 0 just died
            continue
        store.set_timeout(timeout)
        return store
    problem = UserError(f"{file}: rank 0 wrote no address there that responds; its log says why")
    problem.on_this_rank = True
    raise problem


def leave(folder: Path, environment: RankEnvironment) -> None:
    """Remove the address, and those left by killed starts of the same job. For rank 0, at the end."""
    job = environment.start.rpartition(".")[0]
    with suppress(OSError):
        for file in (folder / MEETING).glob(f"{job}.*.json"):
            file.unlink(missing_ok=True)
        (folder / MEETING).rmdir()  # fails while other jobs meet there


def _file(folder: Path, environment: RankEnvironment) -> Path:
    return folder / MEETING / f"{environment.start}.json"
