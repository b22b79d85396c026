"""The memory still available to this process. Known only on Linux."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

try:
    import resource

    limits: ModuleType | None = resource
except ImportError:  # Unix only
    limits = None


def available_memory() -> int | None:
    """Bytes that can still be allocated, limited by the machine, the control group, and `ulimit -v`; None if
    unknown."""
    return min(_limits(), default=None)


def _limits() -> Iterator[int]:
    meminfo = _numbers(Path("/proc/meminfo"))
    if "MemAvailable" in meminfo:
        yield meminfo["MemAvailable"] * 1024
    yield from _limits_of_groups(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    taken = _numbers(Path("/proc/self/status")).get("VmSize")
    if limits is not None and taken is not None:
        address_space = limits.getrlimit(limits.RLIMIT_AS)[0]
        if address_space != limits.RLIM_INFINITY:
            yield max(address_space - taken * 1024, 0)


def _limits_of_groups(root: Path, own: Path) -> Iterator[int]:
    """Memory left by this process's control groups (version 2): its own and their parents, as set by Slurm."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    place = Path(next((line[3:].lstrip("/") for line in lines if line.startswith("0::")), ""))
    for group in (root / place, *(root / parent for parent in place.parents)):
        limit, used = (_number(group / name) for name in ("memory.max", "memory.current"))
        if limit is not None and used is not None:
            # Cached files count as used, but are evicted when memory is needed.
            said = _numbers(group / "memory.stat", " ")
            yield max(limit - used + said.get("file", 0) - said.get("shmem", 0), 0)


def _numbers(path: Path, separator: str = ":") -> dict[str, int]:
    """The lines `Name:  1234 kB` of a file of /proc, or `name 1234` of a control group."""
    try:
        lines = [line.partition(separator) for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {name: int(value.split()[0]) for name, _, value in lines if value.split()[:1] and value.split()[0].isdigit()}


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
