"""Choose the number of CPU threads per rank."""

import os

from segdist.core.machine import usable_cores
from segdist.ranks.launchers import RankEnvironment


def default_threads(environment: RankEnvironment) -> int:
    """CPU threads of a rank: OMP_NUM_THREADS, or the available cores divided between the node's ranks.

    If Slurm doesn't bind tasks to cores, a rank still respects its job's `--cpus-per-task`.
    """
    share = max(1, usable_cores() // environment.local_world_size)
    wanted, asked = (os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"))
    if environment.launcher == "torchrun" and wanted in ("", "1"):
        return share  # torchrun sets it to 1 by default; users who want 1 can say --threads 1
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    return min(share, int(asked)) if asked.isdecimal() and int(asked) > 0 else share
