"""What the bits of an exact run depend on besides its settings: the chip, the build, the number of threads.

All of it is fixed at the first start, stored in the run's config, and checked on every rank at every start.
"""

import json
from dataclasses import replace
from importlib.metadata import version

import torch

from segdist.core.errors import UserError
from segdist.core.formats import RUN_VERSION, unstamped
from segdist.core.machine import processor, usable_cores
from segdist.core.parsing import read_file
from segdist.core.paths import CONFIG
from segdist.core.terminal import warn
from segdist.ranks.process_group import Ranks
from segdist.training.config import TrainConfig


def machine(device: torch.device) -> dict[str, str]:
    """The parts of chip and build that determine the bits."""
    if device.type == "cuda":
        chip = (
            f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        )
    else:
        chip = f"{processor()}, {torch.backends.cpu.get_cpu_capability()}"
    return {"chip": chip, "torch": f"{torch.__version__} ({torch.version.git_version})", "numpy": version("numpy")}


def with_recorded_threads(config: TrainConfig) -> TrainConfig:
    """An exact run's config; if it sets no number of threads, with that of the run's first start."""
    path = config.run_dir / CONFIG
    if not config.exact or config.threads or not path.exists():
        return config
    there = unstamped(read_file(path), RUN_VERSION, str(path)).get("config", {})
    return replace(config, threads=there.get("threads", 0))


def fix_threads(config: TrainConfig, ranks: Ranks) -> TrainConfig:
    """Fix and apply the number of threads of an exact run; check that all ranks run on the same chip and build.

    Collective.

    Raises:
        UserError: two ranks differ; on a GPU without --deterministic.
    """
    if ranks.device.type == "cuda" and not config.deterministic:
        raise UserError("--exact on a GPU needs --deterministic: other kernels may give other bits each time")
    config = with_recorded_threads(config)
    config = replace(config, threads=config.threads or ranks.broadcast(torch.get_num_threads()))
    torch.set_num_threads(config.threads)
    needed, there = config.threads * ranks.environment.local_world_size, usable_cores()
    if needed > there and ranks.is_main and ranks.device.type == "cpu":
        warn(
            f"--exact: {needed} threads share {there} cores, because the run was started with {config.threads} threads "
            "a rank, on which its bits depend; it will be slower here"
        )
    machines = ranks.gather(machine(ranks.device))
    for rank, other in enumerate(machines):
        if other != machines[0]:
            raise UserError(
                f"--exact needs one kind of chip and one build; rank 0 has {json.dumps(machines[0])}, rank {rank} "
                f"{json.dumps(other)}"
            )
    return config
