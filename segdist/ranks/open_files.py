"""Make sure that this process can open the files that its ranks need."""

from types import ModuleType

from segdist.core.errors import UserError

try:
    import resource

    limits: ModuleType | None = resource
except ImportError:  # Windows, where sockets have no such limit
    limits = None

OTHER_FILES = 256
"""Shards, logs, libraries and so on."""
OF_EACH_RANK = 3
"""Connections of rank 0 per rank: gloo's, and two for the ranks' store that it hosts."""


def allow_connections(world_size: int) -> None:
    """Raise this process's limit on open files to what a group of `world_size` ranks needs.

    gloo connects every rank with every other.

    Raises:
        UserError: the system doesn't allow that many; without this, ranks would wait for each other until the time-out.
    """
    if limits is None:
        return
    needed = OF_EACH_RANK * world_size + OTHER_FILES
    soft, hard = limits.getrlimit(limits.RLIMIT_NOFILE)
    endless = limits.RLIM_INFINITY
    if soft == endless or soft >= needed:
        return
    if hard == endless or hard >= needed:
        limits.setrlimit(limits.RLIMIT_NOFILE, (needed, hard))
        return
    raise UserError(
        f"{world_size} ranks need up to {needed} open files per process, but the limit here is {hard}: raise it "
        "(`ulimit -Hn`, LimitNOFILE of slurmd), or start fewer ranks"
    )
