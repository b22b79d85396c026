"""One rank of `segdist bench`, which starts it: measures a training step on several ranks.

    torchrun --standalone --nproc-per-node=2 jobs/bench_ranks.py FOLDER

FOLDER holds the settings of the training; rank 0 writes the figures there.
"""

import sys
from pathlib import Path

from jobs.bench import FIGURES, SETTINGS
from jobs.entry import run_job
from segdist.bench import measure_step
from segdist.core.exit_codes import FINISHED
from segdist.core.parsing import from_dict, read_settings, to_dict, write_settings
from segdist.ranks.process_group import ranks
from segdist.training.config import TrainConfig
from segdist.training.trainer import Trainer


def main(argv: list[str] | None = None) -> int:
    """Run the rank; returns its exit code."""
    folder = Path((sys.argv[1:] if argv is None else argv)[0])
    config = from_dict(TrainConfig, read_settings(folder / SETTINGS), SETTINGS)
    with ranks(config.device) as these:
        figures = measure_step(Trainer(config, these), these)
        if these.is_main:
            write_settings(folder / FIGURES, to_dict(figures))
    return FINISHED


if __name__ == "__main__":
    sys.exit(run_job(main))
