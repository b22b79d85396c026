"""This process's place among the ranks, as given by torchrun or Slurm, or a single process.

The only module that reads launchers' variables.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from segdist.core.errors import UserError

Launcher = Literal["torchrun", "slurm", "single"]

TORCHRUN_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SLURM_VARIABLES = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_JOB_ID", "SLURM_STEP_NODELIST")


@dataclass(frozen=True)
class RankEnvironment:
    """This process's place among the ranks, before anything is set up."""

    launcher: Launcher
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int = 0
    """0: not chosen; rank 0 opens a free one (`segdist.ranks.meeting`)."""
    start: str = ""
    """Slurm's job, step and restart, unique to this start of the ranks: `41234.0.1`."""


def resolve_environment(environ: Mapping[str, str] | None = None) -> RankEnvironment:
    """Read the launcher's variables: torchrun's first, then a Slurm step's, else a single process.

    A Slurm batch script or an `salloc` shell without `srun` is a single process: it has a job id but no step.

    Raises:
        UserError: some of a launcher's variables are set, but others are missing or not numbers; guessing would
            start ranks that wait for each other forever.
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
    # "SLURM_STEP_ID" distinguishes a task of srun from the batch script around it, which doesn't have it.
    if "SLURM_STEP_ID" in environ and environ.get("SLURM_STEP_NUM_TASKS", environ.get("SLURM_NTASKS")) != "1":
        _require(environ, SLURM_VARIABLES, "srun")
        # The step's own number: SLURM_NTASKS is the job's, and srun may have been given fewer.
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
                master_port=int(environ.get("MASTER_PORT") or 0),
                start=".".join(
                    (environ["SLURM_JOB_ID"], environ["SLURM_STEP_ID"], environ.get("SLURM_RESTART_COUNT") or "0")
                ),
            )
        )
    return RankEnvironment(launcher="single")


def torchrun_shares_its_store() -> bool:
    """True if torchrun makes workers use its agent's store."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def torchrun_would_restart() -> bool:
    """True if torchrun has restarts left: it treats every nonzero exit code as a failure and would restart a stopped
    run."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


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
        raise UserError(f"{name}={environ[name]!r} is not a number") from None


def _expand_tasks_per_node(text: str) -> list[int]:
    """Slurm's `2(x3),1` → [2, 2, 2, 1]."""
    counts: list[int] = []
    for part in text.split(","):
        tasks, _, repeat = part.partition("(x")
        counts += [int(tasks)] * int(repeat.rstrip(")") or 1)
    return counts


def _checked(environment: RankEnvironment) -> RankEnvironment:
    if not 0 <= environment.rank < environment.world_size:
        raise UserError(f"{environment.launcher}: no rank {environment.rank} of {environment.world_size}")
    if not 0 <= environment.local_rank < environment.local_world_size:
        raise UserError(
            f"{environment.launcher}: no local rank {environment.local_rank} of {environment.local_world_size}"
        )
    return environment
