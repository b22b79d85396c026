"""The process group: several ranks, or a single process, behind one small interface.

The only module that sets up `torch.distributed`. Everything else gets a `Ranks` and calls its few methods, which do
nothing in a single process.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar, cast

import torch
import torch.distributed as dist

# Here, because its functions have the group as a default argument. torch imports it along with torch._dynamo; if that
# happens while there is a group, the group is never freed, and its threads can abort the process when it ends.
import torch.distributed.nn.functional

from segdist.core.errors import UserError
from segdist.ranks.allocator import keep_freed_memory
from segdist.ranks.device import choose_device
from segdist.ranks.launchers import RankEnvironment, resolve_environment, torchrun_shares_its_store
from segdist.ranks.meeting import leave, meet
from segdist.ranks.open_files import allow_connections
from segdist.ranks.threads import default_threads
from segdist.ranks.watch import Watch

Result = TypeVar("Result")

STORE_KEY = "segdist/port"
LAUNCHER_LIMIT = timedelta(seconds=60)
"""Time limit for reaching torchrun's store."""
RECORDED_COLLECTIVES = 2000
"""Number of collectives that NCCL's Flight Recorder keeps: about a hundred steps, half a megabyte."""


class Ranks:
    """The ranks of a job, seen from one of them. All methods are collective: every rank must call them."""

    def __init__(self, environment: RankEnvironment, device: torch.device, watch: Watch | None = None) -> None:
        self.environment = environment
        self._watch = watch
        self.rank = environment.rank
        self.world_size = environment.world_size
        self.device = device

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files and prints output."""
        return self.rank == 0

    def at(self, doing: str, step: int | None = None) -> None:
        """Report what this rank is doing now, so that others can say so if they wait for it. Not collective."""
        if self._watch is not None:
            self._watch.at(doing, step)

    def keep_heartbeat(self, run_dir: Path) -> None:
        """Maintain a file per node in `run_dir` until the end of the job. Not collective."""
        if self._watch is not None:
            self._watch.keep_file(run_dir)

    def barrier(self) -> None:
        """Wait until every rank gets here."""
        if self.world_size > 1:
            self.at("barrier")
            # Through gloo even on GPU machines: with NCCL the GPU would wait while the process continues.
            dist.all_reduce(torch.zeros(1, dtype=torch.int64))

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place; exact for integers. The tensor must be on `self.device`."""
        if self.world_size > 1:
            self.at("sum over ranks")
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
        return tensor

    def max_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Maximum over ranks, in place. The tensor must be on `self.device`."""
        if self.world_size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def share_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy rank 0's values to all ranks, in place. The tensor must be on `self.device`."""
        if self.world_size > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def gather(self, value: Result) -> list[Result]:
        """Every rank's `value` (anything that pickles), in rank order, on all ranks."""
        if self.world_size == 1:
            return [value]
        self.at("gathering from all ranks")
        values = [value] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Result) -> Result:
        """Rank 0's `value` (anything that pickles), on all ranks."""
        if self.world_size == 1:
            return value
        self.at("broadcast from rank 0")
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def on_main(self, function: Callable[[], Result]) -> Result:
        """Call `function` only on rank 0.

        Returns:
            Its result (anything that pickles), on all ranks.

        Raises:
            UserError: if it raised one; on all ranks.
        """
        found: Result | UserError | None = None
        if self.is_main:
            try:
                found = function()
            except UserError as error:
                found = error
        found = self.broadcast(found)
        if isinstance(found, UserError):
            raise found
        return cast(Result, found)

    def on_all(self, function: Callable[[], Result]) -> Result:
        """Call `function` on every rank, each for its part of the work.

        Returns:
            Its result on this rank.

        Raises:
            UserError: if it raised one on any rank; on all ranks, the one of the lowest rank.
        """
        found: Result | None = None
        problem: UserError | None = None
        try:
            found = function()
        except UserError as error:
            problem = error
        for told in self.gather(problem):
            if told is not None:
                raise told
        return cast(Result, found)


@contextmanager
def ranks(
    device: str = "auto",
    threads: int = 0,
    timeout: timedelta = timedelta(minutes=30),
    meeting_place: Path = Path(),
) -> Iterator[Ranks]:
    """Set up this process as a rank: gloo on CPU, NCCL on GPUs. Torn down at the end.

    Args:
        device: "auto" (CUDA if there is a GPU for each local rank), "cpu" or "cuda".
        threads: CPU threads per rank; 0: see `default_threads`.
        timeout: how long a rank waits for the others in a collective before it fails.
        meeting_place: the job's folder, shared between the nodes, through which ranks started by Slurm find each other.
    """
    environment = resolve_environment()
    chosen = choose_device(device, environment)
    torch.set_num_threads(threads or default_threads(environment))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    else:
        keep_freed_memory()
    places: dist.Store | None = None
    if environment.world_size > 1:
        allow_connections(environment.world_size)
        record_collectives(chosen)
        os.environ["MASTER_ADDR"] = environment.master_addr
        store = _open_store(environment, timeout, meeting_place)
        os.environ["MASTER_PORT"] = str(store.port)
        dist.init_process_group(
            # Objects and CPU tensors go through gloo even on GPU machines.
            backend="cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo",
            store=store,
            rank=environment.rank,
            world_size=environment.world_size,
            timeout=timeout,
        )
        # A separate client: the group's client blocks while holding its lock, but the watch has to continue.
        places = dist.TCPStore(
            environment.master_addr, store.port, is_master=False, timeout=timeout, wait_for_workers=False
        )
    watch = Watch(environment, places, timeout)
    try:
        yield Ranks(environment, chosen, watch)
    except BaseException:
        watch.close()
        _leave_without_the_others(chosen)
        raise
    finally:
        if environment.rank == 0 and environment.start:
            leave(meeting_place, environment)
    watch.close()
    if dist.is_initialized():
        dist.destroy_process_group()


def record_collectives(device: torch.device) -> None:
    """Make NCCL's Flight Recorder keep the last collectives and dump them at a time-out, unless configured otherwise.

    Each rank writes `$TMPDIR/nccl_trace_rank_N`; `torchfrtrace` finds in them where the ranks diverged.
    """
    if device.type == "cuda":
        size = str(RECORDED_COLLECTIVES)
        # The second is its name up to torch 2.7.
        for name, value in {
            "TORCH_FR_BUFFER_SIZE": size,
            "TORCH_NCCL_TRACE_BUFFER_SIZE": size,
            "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        }.items():
            os.environ.setdefault(name, value)


def _leave_without_the_others(device: torch.device) -> None:
    """Leave the group after an error: the other ranks may be gone, or not know about it yet."""
    group = dist.group.WORLD
    if group is None:
        return
    if device.type == "cuda":
        # A regular shutdown would wait for NCCL operations that may never finish, and the error would never be shown.
        group._get_backend(device).abort()
    else:
        dist.destroy_process_group()


def _open_store(environment: RankEnvironment, timeout: timedelta, meeting_place: Path) -> dist.TCPStore:
    if torchrun_shares_its_store():
        return _own_store(environment, timeout)
    if environment.start and not environment.master_port:
        return meet(meeting_place, environment, timeout)
    return _launchers_store(environment, timeout)


def _launchers_store(environment: RankEnvironment, timeout: timedelta) -> dist.TCPStore:
    """A store at the address chosen by the launcher, opened by rank 0."""
    return dist.TCPStore(
        environment.master_addr,
        environment.master_port,
        environment.world_size,
        is_master=environment.rank == 0,
        timeout=timeout,
        wait_for_workers=False,
    )


def _own_store(environment: RankEnvironment, timeout: timedelta) -> dist.TCPStore:
    """A store only for this start of the ranks, opened by rank 0, which publishes its address in torchrun's store.

    torchrun (observed with torch 2.13) gives restarted workers the store of those that died. Their addresses are still
    in it, and gloo waits for them forever. An address left by an earlier rank 0 is refused, or soon replaced.
    """
    # The store exists before the workers start, so a long wait means that torchrun has died.
    shared = dist.TCPStore(
        environment.master_addr, environment.master_port, is_master=False, timeout=min(timeout, LAUNCHER_LIMIT)
    )
    if environment.rank == 0:
        own = dist.TCPStore(
            environment.master_addr, 0, environment.world_size, is_master=True, timeout=timeout, wait_for_workers=False
        )
        shared.set(STORE_KEY, str(own.port))
        return own
    deadline = time.monotonic() + timeout.total_seconds()
    while True:
        port = int(shared.get(STORE_KEY))
        try:
            own = dist.TCPStore(
                environment.master_addr, port, is_master=False, timeout=timedelta(seconds=5), wait_for_workers=False
            )
        except dist.DistError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
            continue
        own.set_timeout(timeout)
        return own
