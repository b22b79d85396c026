"""Choose the device of a rank."""

import torch

from segdist.core.errors import UserError
from segdist.core.terminal import warn
from segdist.ranks.launchers import RankEnvironment


def choose_device(wanted: str, environment: RankEnvironment) -> torch.device:
    """The rank's device: with "auto", a separate GPU, or the CPU if there aren't enough GPUs.

    Raises:
        UserError: "cuda" without a GPU for each rank of the node; an unknown word.
    """
    if wanted not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {wanted}: choose auto, cpu or cuda")
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("--device cuda: this machine (or this build of torch) has no CUDA; use --device cpu")
    visible = torch.cuda.device_count()
    if visible == 1 and environment.launcher == "slurm":
        return torch.device("cuda", 0)  # each task sees only its own GPU, if Slurm assigns them one by one
    if environment.local_world_size <= visible:
        return torch.device("cuda", environment.local_rank)
    problem = f"{environment.local_world_size} ranks on this node, but {visible} GPUs: start one rank per GPU"
    if wanted == "cuda":
        raise UserError(f"{problem} (--nproc-per-node, --ntasks-per-node) or use --device cpu")
    if environment.rank == 0:
        warn(f"{problem} to use them; the ranks run on the CPU")
    return torch.device("cpu")
