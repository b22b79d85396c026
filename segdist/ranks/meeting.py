"""Where the ranks of a Slurm job meet: rank 0 opens a free port and writes its address into the job's folder.

The file is `<folder>/.meeting/<job>.<step>.<restart>.json`, so that no start of a job takes up the address of another,
nor of an earlier start of its own. A port computed from the job's number could belong to somebody else.
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
"""Seconds between two looks for rank 0's address."""
CONNECT = timedelta(seconds=5)
"""How long an address is tried before the file is read again."""


def meet(folder: Path, environment: RankEnvironment, timeout: timedelta) -> dist.TCPStore:
    """The store of this start of the ranks, opened by rank 0.

    Args:
        folder: of the job, shared between the nodes; made if it doesn't exist.
        timeout: of the store, and how long a rank looks for rank 0's address.

    Raises:
        UserError: the folder can't be written; rank 0 wrote no address that answers.
    """
    file = _file(folder, environment)
    if environment.rank == 0:
        store = dist.TCPStore(
            environment.master_addr, 0, environment.world_size, is_master=True, timeout=timeout, wait_for_workers=False
        )
        try:
            write_json(file, stamped({"host": environment.master_addr, "port": store.port}, FORMAT))
        except OSError as error:
            raise UserError(f"{file}: can't be written ({error.strerror}); the ranks meet there") from None
        return store
    deadline = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < deadline:
        with suppress(OSError):
            os.listdir(file.parent)  # has network file systems look for new files
        try:
            address = json.loads(file.read_text())
            read_version(address, FORMAT, str(file))
            store = dist.TCPStore(
                address["host"], address["port"], is_master=False, timeout=CONNECT, wait_for_workers=False
            )
        except (OSError, ValueError, dist.DistError):
            time.sleep(LOOK_EVERY)  # not there yet, or rank 0 has just died
            continue
        store.set_timeout(timeout)
        return store
    problem = UserError(f"{file}: rank 0 wrote no address there that answers; its log says why")
    problem.on_this_rank = True
    raise problem


def leave(folder: Path, environment: RankEnvironment) -> None:
    """Remove the address, and those that killed starts of the same job have left. For rank 0, at the end."""
    job = environment.start.rpartition(".")[0]
    with suppress(OSError):
        for file in (folder / MEETING).glob(f"{job}.*.json"):
            file.unlink(missing_ok=True)
        (folder / MEETING).rmdir()  # fails while other jobs meet there


def _file(folder: Path, environment: RankEnvironment) -> Path:
    return folder / MEETING / f"{environment.start}.json"
