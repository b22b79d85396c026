"""What `segdist bench` measures on this machine, and what it concludes: which part of the work is the bottleneck."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import tifffile
import torch

from segdist.core.json_values import JsonObject
from segdist.core.parsing import from_dict, merge
from segdist.inference.parts import MemoryRows
from segdist.inference.predictor import Predictor
from segdist.inference.writers import write_mask_png
from segdist.model.prepared import prepared
from segdist.ranks.process_group import Ranks
from segdist.training.choices import MINUTES
from segdist.training.config import TrainConfig
from segdist.training.data import TrainingData
from segdist.training.job import with_choices
from segdist.training.pace import timed
from segdist.training.trainer import Trainer
from shards.build.build import make_shards
from shards.build.config import MakeShardsConfig, SyntheticConfig
from shards.build.synthetic import draw
from shards.images.opening import open_image

SECONDS = 2.0
"""Minimum time to measure the loader, the tiler, and reading and writing."""
CPU_SIDE, GPU_SIDE = 512, 2048
"""Side in pixels of the image to segment."""
BUSY = 0.8
"""If the loader needs this fraction of a step or more to deliver the batch, the step waits for it."""


@dataclass(frozen=True)
class StepFigures:
    """Loader and training step on a number of ranks."""

    ranks: int
    units: int
    """GPUs, or CPU threads, of all ranks together."""
    batch: int
    """Samples of a step, over all ranks."""
    loader: float
    """Samples/s that the loaders of all ranks deliver together, without training."""
    step: float
    """Seconds of a training step, reading included."""
    summing: float
    """Seconds to sum all gradients over the ranks once, without computing anything; 0 for one rank."""

    @property
    def rate(self) -> float:
        """Samples/s of training."""
        return self.batch / self.step

    def efficiency(self, one: "StepFigures") -> float:
        """Samples/s per GPU or thread, relative to those of `one` rank."""
        return (self.rate / self.units) / (one.rate / one.units)


@dataclass(frozen=True)
class TilerFigures:
    """Inference of one square image in one process."""

    side: int
    """Pixels."""
    tiling: float
    """Seconds from pixels to labels."""
    files: float
    """Seconds to read the image and to write the mask."""

    @property
    def megapixels(self) -> float:
        """Megapixels/s, from pixels to labels."""
        return self.side**2 / self.tiling / 1e6


def synthetic_set(folder: Path) -> str:
    """Write a shard set of a few hundred synthetic patches into `folder`; returns its path."""
    config = MakeShardsConfig(name="synthetic", root=folder, processes=1, synthetic=SyntheticConfig(train=20, test=0))
    make_shards(config, quiet=True)
    return str(config.folder)


def preset_config(data: str, run: Path, ranks: Ranks) -> TrainConfig:
    """The settings that the preset `auto` chooses for the set `data` and the default length of a training.

    Args:
        run: folder of the run; it is never created.
    """
    own = {"data": [data], "name": str(run), "device": ranks.device.type, "minutes": MINUTES}
    # Steps are given too, so that the trainer doesn't time some to find their number.
    own |= {"steps": 1, "tracking": {"wandb": "off"}}

    def read(values: JsonObject) -> TrainConfig:
        return from_dict(TrainConfig, merge(values, own), "segdist bench")

    return with_choices(read({}), read, {}, ranks)[0]


def rank_counts(most: int, batch: int) -> list[int]:
    """The powers of two up to `most` ranks, and `most`; each rank needs two samples of the batch, for batch norm."""
    most = max(min(most, batch // 2), 1)
    return [*(2**power for power in range(most.bit_length()) if 2**power < most), most]


def measure_step(trainer: Trainer, ranks: Ranks) -> StepFigures:
    """Measure loader, step and sum of gradients on these ranks. Collective; the same on all ranks.

    Raises:
        UserError: the model can't be trained, or the batch doesn't fit into memory.
    """
    loader = sum(ranks.gather(_loader_rate(trainer.data)))
    step = trainer.rehearsal.step_seconds()
    summing = 0.0
    if ranks.world_size > 1:
        weights = sum(parameter.numel() for parameter in trainer.learner.model.parameters())
        gradients = torch.zeros(weights, device=ranks.device)

        def sums(count: int) -> None:
            for _ in range(count):
                ranks.sum_(gradients)
            gradients[0].item()  # waits for the device

        summing = timed(sums, ranks)
    units = ranks.world_size * (1 if ranks.device.type == "cuda" else torch.get_num_threads())
    return StepFigures(ranks.world_size, units, trainer.config.batch_size, loader, step, summing)


def _loader_rate(data: TrainingData) -> float:
    """Samples/s of this rank's part of the batches."""
    with closing(data.batches(0)) as batches:
        next(batches)  # starts the thread
        return len(data.slots) / _seconds(lambda: next(batches))


def measure_inference(trainer: Trainer, folder: Path) -> TilerFigures:
    """Measure the tiler on a synthetic image, with the settings in the trainer's config; the files go to `folder`."""
    config, data, device = trainer.config, trainer.data, trainer.ranks.device
    side = GPU_SIDE if device.type == "cuda" else CPU_SIDE
    predictor = Predictor(
        prepared(trainer.learner.best_model, device, trainer.precision),
        tile=config.inference.tile or data.patch,
        overlap=config.inference.overlap,
        flips=config.inference.flips,
        device=device.type,
        precision=config.precision,
        channels_last=config.channels_last,
        num_classes=len(data.classes),
        mean=data.mean,
        std=data.std,
    )
    image, mask = draw(0, "test", 0, side, side)
    pixels = image.repeat(data.channels, axis=2)
    path = folder / "image.tif"
    planes = "contig" if data.channels > 1 else None
    tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig=planes, compression="zlib")
    # An untrained model predicts noise, which takes longer to compress than a real mask.
    layer = MemoryRows(mask % len(data.classes))

    def files() -> None:
        with open_image(path, channels=data.channels) as opened:
            opened.read(0, side)
        write_mask_png(folder / "mask.png", layer, data.classes)

    return TilerFigures(side, _seconds(lambda: predictor.labels(pixels)), _seconds(files))


def _seconds(work: Callable[[], object]) -> float:
    """Mean seconds of a call, after a first one that doesn't count."""
    work()
    began, calls = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < SECONDS:
        work()
        calls += 1
    return elapsed / calls


def bottleneck(figures: StepFigures, tiler: TilerFigures) -> str:
    """One sentence: what limits training on these ranks and inference, with the figures behind it."""
    loading, summing = figures.rate / figures.loader, figures.summing / figures.step
    reading = tiler.files / (tiler.files + tiler.tiling)
    train = "the loader" if loading >= BUSY else "the sum of gradients over ranks" if summing >= 0.5 else "the model"
    infer = "reading and writing" if reading >= 0.5 else "the model"
    ranks = "1 rank" if figures.ranks == 1 else f"{figures.ranks} ranks"
    why = f"the loader can deliver {1 / loading:,.{0 if loading < 0.1 else 1}f} times the samples/s"
    if figures.ranks > 1:
        why += f", and a sum of all gradients takes {summing:.1%} of a step"
    return (
        f"Training on {ranks} is limited by {train} ({why}), and inference by {infer} (reading and writing take "
        f"{reading:.1%} of the time)."
    )
