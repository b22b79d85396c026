"""A job whose ranks share one GPU: torchrun tests/support/one_card.py JOB GIB ARGUMENTS.

NCCL refuses two ranks on one GPU, so gloo transfers the GPU tensors, too. GIB is the GPU memory available to each rank.
Without a GPU, the job runs unchanged.
"""

import sys
from typing import Any

import torch
import torch.distributed as dist

from segdist.ranks import process_group


def main(job: str, gib: str, *arguments: str) -> int:
    """Run the job on the first GPU; return its exit code."""
    from jobs import cli

    if torch.cuda.is_available():
        start = dist.init_process_group

        def through_gloo(backend: str, **settings: Any) -> None:
            start(backend="gloo", **settings)

        dist.init_process_group = through_gloo
        process_group.choose_device = lambda wanted, environment: torch.device("cuda", 0)
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(float(gib) * 2**30 / whole)
    return cli.main([job, *arguments])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
