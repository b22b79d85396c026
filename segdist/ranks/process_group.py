"""Rank, world size and process group, for torchrun, for Slurm (srun) and for a single process.

The only module that reads launcher variables or touches `torch.distributed`'s set-up. Everything else gets a `Ranks`
and calls its few methods, which do nothing in a single process.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist

from segdist.core.errors import UserError
from segdist.core.terminal import warn
from segdist.ranks.allocator import keep_freed_memory

STORE_KEY = "segdist/port"

Launcher = Literal["torchrun", "slurm", "single"]

TORCHRUN_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SLURM_VARIABLES = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_JOB_ID", "SLURM_STEP_NODELIST")


@dataclass(frozen=True)
class RankEnvironment:
    """Where this process stands among the ranks, before anything is set up."""

    launcher: Launcher
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int = 0


def resolve_environment(environ: Mapping[str, str] | None = None) -> RankEnvironment:
    """Read the launcher's variables: torchrun's first, then a Slurm step's, else a single process.

    A Slurm batch script or an `salloc` shell without `srun` is a single process: it has a job id but no step.

    Raises:
        UserError: some of a launcher's variables are set and others are missing or no numbers; guessing would
            start ranks that wait for each other for ever.
    """
    environ = os.environ if environ is None else environ
    if "RANK" in environ or "WORLD_SIZE" in environ:
        _require(environ, TORCHRUN_VARIABLES, "torchrun")
        return _checked(
            RankEnvironment(
                launcher="torchrun",
                rank=_integer(environ, "RANK"),
                local_rank=_integer(environ, "LOCAL_RANK"),
                world_size=_integer(environ, "WORLD_SIZE"),
                local_world_size=_integer(environ, "LOCAL_WORLD_SIZE"),
                master_addr=environ["MASTER_ADDR"],
                master_port=_integer(environ, "MASTER_PORT"),
            )
        )
    # "SLURM_STEP_ID" is what tells a task of srun from the batch script around it; the batch script has none.
    if "SLURM_STEP_ID" in environ and environ.get("SLURM_STEP_NUM_TASKS", environ.get("SLURM_NTASKS")) != "1":
        _require(environ, SLURM_VARIABLES, "srun")
        # The step's own number: SLURM_NTASKS is the job's, and srun may have been asked for fewer.
        world_size = _integer(environ, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS")
        tasks_per_node = _expand_tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE", str(world_size)))
        node = int(environ.get("SLURM_NODEID", "0"))
        if node >= len(tasks_per_node):
            raise UserError(
                f"srun: SLURM_NODEID={node}, but SLURM_STEP_TASKS_PER_NODE lists {len(tasks_per_node)} nodes; "
                "start the job with a fresh srun"
            )
        return _checked(
            RankEnvironment(
                launcher="slurm",
                rank=_integer(environ, "SLURM_PROCID"),
                local_rank=_integer(environ, "SLURM_LOCALID"),
                world_size=world_size,
                local_world_size=tasks_per_node[node],
                master_addr=environ.get("MASTER_ADDR") or first_host(environ["SLURM_STEP_NODELIST"]),
                # Two jobs on one node must not meet: the port comes from the job id, below those of Linux' clients.
                master_port=int(environ.get("MASTER_PORT") or 20000 + _integer(environ, "SLURM_JOB_ID") % 12000),
            )
        )
    return RankEnvironment(launcher="single")


def first_host(nodelist: str) -> str:
    """First name of a Slurm node list: `gpu[003-005,9],login` → `gpu003`."""
    head, bracket, rest = nodelist.partition("[")
    if "," in head:
        return head.split(",")[0]
    if not bracket:
        return nodelist
    inside, _, after = rest.partition("]")
    suffix = after.split(",")[0]
    return head + inside.replace(",", "-").split("-")[0] + suffix


class Ranks:
    """The ranks of a job, seen from one of them. All methods are collective: every rank must call them."""

    def __init__(self, environment: RankEnvironment, device: torch.device) -> None:
        self.environment = environment
        self.rank = environment.rank
        self.world_size = environment.world_size
        self.device = device

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files and talks to the person."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            # Through gloo also on GPU machines: NCCL would have the GPU wait, and let the process go on.
            dist.all_reduce(torch.zeros(1, dtype=torch.int64))

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place; exact for integers. The tensor lies on `self.device`."""
        if self.world_size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value` (anything that pickles), in rank order, on all ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value` (anything that pickles), on all ranks."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]


@contextmanager
def ranks(device: str = "auto", threads: int = 0, timeout: timedelta = timedelta(minutes=30)) -> Iterator[Ranks]:
    """Set up this process as a rank; gloo on CPU, NCCL on GPUs; torn down at the end.

    Args:
        device: "auto" (CUDA where there is a GPU for each local rank), "cpu" or "cuda".
        threads: CPU threads per rank; 0: see `default_threads`.
        timeout: how long a rank waits for the others in a collective before it gives up with an error.
    """
    environment = resolve_environment()
    chosen = choose_device(device, environment)
    torch.set_num_threads(threads or default_threads(environment))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    else:
        keep_freed_memory()
    if environment.world_size > 1:
        os.environ["MASTER_ADDR"] = environment.master_addr
        os.environ["MASTER_PORT"] = str(environment.master_port)
        dist.init_process_group(
            # Objects and CPU tensors go through gloo also on GPU machines.
            backend="cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo",
            store=_own_store(environment, timeout) if _torchrun_shares_its_store() else None,
            rank=environment.rank,
            world_size=environment.world_size,
            timeout=timeout,
        )
    try:
        yield Ranks(environment, chosen)
    except BaseException:
        _leave_without_the_others(chosen)
        raise
    if dist.is_initialized():
        dist.destroy_process_group()


def _leave_without_the_others(device: torch.device) -> None:
    """Leave the group after an error: the other ranks may be gone, or know nothing of it yet."""
    group = dist.group.WORLD
    if group is None:
        return
    if device.type == "cuda":
        # The orderly end would wait for what NCCL has under way, which may never end, and nobody would hear the error.
        group._get_backend(device).abort()
    else:
        dist.destroy_process_group()


def _torchrun_shares_its_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _own_store(environment: RankEnvironment, timeout: timedelta) -> dist.Store:
    """A store for this start of the ranks alone, opened by rank 0, whose address stands in torchrun's store.

    torchrun (seen with torch 2.13) gives workers that it restarts the store of those that died. Their addresses are
    still in it, and gloo waits for them for ever. An address that an earlier rank 0 left is refused, or replaced soon.
    """
    shared = dist.TCPStore(environment.master_addr, environment.master_port, is_master=False, timeout=timeout)
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


def default_threads(environment: RankEnvironment) -> int:
    """CPU threads of a rank: OMP_NUM_THREADS, or the cores that this process may use shared between the node's ranks.

    Where Slurm does not bind tasks to cores, a rank still keeps to the `--cpus-per-task` that its job asked for.
    """
    share = max(1, len(os.sched_getaffinity(0)) // environment.local_world_size)
    if environment.launcher == "torchrun":  # which sets OMP_NUM_THREADS=1 by itself
        return share
    wanted, asked = (os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"))
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    return min(share, int(asked)) if asked.isdecimal() and int(asked) > 0 else share


def choose_device(wanted: str, environment: RankEnvironment) -> torch.device:
    """The device of a rank: with "auto" a GPU of its own, or the CPU where there are not enough of them.

    Raises:
        UserError: "cuda" where there is no GPU for each rank of the node; an unknown word.
    """
    if wanted not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {wanted}: choose auto, cpu or cuda")
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("--device cuda: this machine (or this build of torch) has no CUDA; use --device cpu")
    visible = torch.cuda.device_count()
    if visible == 1 and environment.launcher == "slurm":
        return torch.device("cuda", 0)  # each task sees its own, where Slurm hands them out one by one
    if environment.local_world_size <= visible:
        return torch.device("cuda", environment.local_rank)
    problem = f"{environment.local_world_size} ranks on this node, but {visible} GPUs: start one rank per GPU"
    if wanted == "cuda":
        raise UserError(f"{problem} (--nproc-per-node, --ntasks-per-node) or use --device cpu")
    if environment.rank == 0:
        warn(f"{problem} to use them; the ranks run on the CPU")
    return torch.device("cpu")


def _require(environ: Mapping[str, str], names: tuple[str, ...], launcher: str) -> None:
    missing = [name for name in names if not environ.get(name)]
    if missing:
        present = [name for name in names if environ.get(name)]
        raise UserError(
            f"half a {launcher} environment: {', '.join(present)} set, but not {', '.join(missing)}. "
            f"Start with {launcher}, or unset the variables to run as a single process."
        )


def _integer(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError:
        raise UserError(f"{name}={environ[name]!r} is no number") from None


def _expand_tasks_per_node(text: str) -> list[int]:
    """Slurm's `2(x3),1` → [2, 2, 2, 1]."""
    counts: list[int] = []
    for part in text.split(","):
        tasks, _, repeat = part.partition("(x")
        counts += [int(tasks)] * int(repeat.rstrip(")") or 1)
    return counts


def _checked(environment: RankEnvironment) -> RankEnvironment:
    if not 0 <= environment.rank < environment.world_size:
        raise UserError(f"{environment.launcher}: rank {environment.rank} of {environment.world_size} can't be")
    if not 0 <= environment.local_rank < environment.local_world_size:
        raise UserError(
            f"{environment.launcher}: local rank {environment.local_rank} of {environment.local_world_size} can't be"
        )
    return environment
