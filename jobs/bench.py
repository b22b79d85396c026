"""`segdist bench`: measure this machine in one or two minutes, and say what limits training and inference.

    segdist bench                  on synthetic images in a temporary folder
    segdist bench -f cells         on your shard set

Measures the loader, a training step with the settings that the preset `auto` chooses, the same step on more ranks (up
to one per GPU, or per core without GPUs), and the tiler. Leaves nothing on disk; Ctrl-C ends it. Compare ratios rather
than times, and run it on an otherwise idle machine.
"""

import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.command_line import parse_options
from jobs.config import BenchConfig
from jobs.entry import run_job
from segdist.core.errors import UserError
from segdist.core.exit_codes import FINISHED, STOPPED
from segdist.core.machine import processor, usable_cores
from segdist.core.parsing import from_dict, read_settings, to_dict, write_settings
from segdist.core.terminal import say

if TYPE_CHECKING:
    from segdist.bench import StepFigures
    from segdist.training.trainer import Trainer

RANKS = Path(__file__).with_name("bench_ranks.py")
SETTINGS, FIGURES = "settings.json", "figures.json"
HEADINGS = ("ranks", "threads/GPUs", "loader samples/s", "ms/step", "samples/s", "efficiency", "ms/sum of gradients")


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    config = parse_options(BenchConfig, argv, "bench", __doc__ or "")
    # Heavy imports come after the command line.
    import torch

    from segdist.bench import bottleneck, measure_inference, measure_step, preset_config, rank_counts, synthetic_set
    from segdist.ranks.launchers import resolve_environment
    from segdist.ranks.process_group import ranks
    from segdist.training.trainer import Trainer
    from slurm.torchrun import run_here

    if resolve_environment().world_size > 1:
        raise UserError("segdist bench starts its ranks itself: run it once, without torchrun or srun")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, which removes the folder
    with tempfile.TemporaryDirectory(prefix="segdist-bench-") as name:
        folder = Path(name)
        tempfile.tempdir = os.environ["TMPDIR"] = name  # torch doesn't remove its own temporary folders
        data = config.data or synthetic_set(folder)
        with ranks(config.device) as one:
            train = preset_config(data, folder / "run", one)
            trainer = Trainer(train, one)
            on_gpus = one.device.type == "cuda"
            device = torch.cuda.get_device_name(one.device) if on_gpus else f"{usable_cores()} cores, {processor()}"
            say(f"{device}; torch {torch.__version__}\n{_headline(trainer, config.data or 'synthetic images')}\n")
            say("  ".join(HEADINGS))
            first = last = measure_step(trainer, one)
            say(_row(first, first))
            tiler = measure_inference(trainer, folder)
        most = config.processes or (torch.cuda.device_count() if on_gpus else usable_cores())
        write_settings(folder / SETTINGS, to_dict(train))
        for count in rank_counts(most, train.batch_size)[1:]:
            code = run_here([sys.executable, str(RANKS), str(folder)], count)
            if code == STOPPED:
                raise KeyboardInterrupt
            if code:
                return code
            last = from_dict(type(first), read_settings(folder / FIGURES), FIGURES)
            say(_row(last, first))
    say(f"\ninference  {tiler.megapixels:.3g} megapixels/s, {tiler.side} x {tiler.side} pixels, one process")
    say(f"\n{bottleneck(last, tiler)}")
    return FINISHED


def _headline(trainer: "Trainer", name: str) -> str:
    data, config = trainer.data, trainer.config
    return (
        f"{name}: {data.samples['train']} patches of {data.patch} x {data.patch} x {data.channels}\n"
        f"batch {config.batch_size}, model of width {config.model.width}, {trainer.precision.name}"
    )


def _row(figures: "StepFigures", one: "StepFigures") -> str:
    cells = (
        f"{figures.ranks}",
        f"{figures.units}",
        f"{figures.loader:.0f}",
        f"{1000 * figures.step:.1f}",
        f"{figures.rate:.1f}",
        f"{figures.efficiency(one):.0%}",
        f"{1000 * figures.summing:.1f}" if figures.ranks > 1 else "-",
    )
    return "  ".join(cell.rjust(len(heading)) for cell, heading in zip(cells, HEADINGS, strict=True))


if __name__ == "__main__":
    sys.exit(run_job(main))
