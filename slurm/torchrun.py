"""One torchrun on each node, which starts the node's ranks as its own processes.

Serves where a site allows one task per node only, or where ranks that die shall be started again without a way
through the queue (`[environment] SEGDIST_MAX_RESTARTS = "3"` in the profile). Otherwise one Slurm task per rank is
better: it stops in tenths of a second and starts some seconds sooner.
"""

import os
import sys

from submitit import JobEnvironment

from slurm.requeue import STOPPED, Comeback


def run_torchrun(
    entry: str, arguments: list[str], job: JobEnvironment, ranks_per_node: int, port: int, comeback: Comeback
) -> int:
    """Run `entry(arguments)` on `ranks_per_node` ranks of this node and on those of the job's other nodes.

    Returns the job's exit code: STOPPED when a rank returned it or when this process was told to stop.
    """
    # In this process, so that the verdict on each rank is at hand; torchrun's command line only prints it.
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    module, _, function = entry.partition(":")
    call = f"import sys, importlib; sys.exit(importlib.import_module({module!r}).{function}(sys.argv[1:]))"
    config = LaunchConfig(
        min_nodes=job.num_nodes,
        max_nodes=job.num_nodes,
        nproc_per_node=ranks_per_node,
        run_id=job.job_id,
        rdzv_backend="static",
        rdzv_endpoint=f"{job.hostnames[0]}:{port}",
        rdzv_configs={"rank": job.node, "timeout": 900},
        max_restarts=int(os.environ.get("SEGDIST_MAX_RESTARTS", "0")),
        monitor_interval=0.5,
    )
    try:
        elastic_launch(config, sys.executable)("-u", "-c", call, *arguments)
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        # A rank that dies of the signal before it has set its handler has nothing to save yet.
        if comeback.told_to_stop or STOPPED in codes:
            return STOPPED
        return next((code for code in codes if code > 0), 1)
    except SignalException:  # SIGTERM reached the agent
        return STOPPED
    # Where torchrun may restart workers, a stopped job returns 0, so that it is left alone.
    return STOPPED if comeback.told_to_stop else 0
