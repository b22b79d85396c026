"""A training run from config to summary: what `segdist train` does on every rank."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from segdist.core.terminal import say
from segdist.model.config import UNET
from segdist.model.precision import Precision, choose_precision
from segdist.ranks.process_group import Ranks
from segdist.tracking import Trackers, check_trackers, open_trackers
from segdist.tracking.job_log import data_facts, log_contact_sheets
from segdist.training.config import TrainConfig
from segdist.training.data import TrainingData
from segdist.training.losses import Loss, class_weights
from segdist.training.reporter import RunReporter
from segdist.training.run_files import check_same_run, describe_run, write_description
from segdist.training.trainer import Run, State, prepare_model

GPU_WIDTH, CPU_WIDTH = 64, 16
"""Base width of the U-Net where the config leaves it open: the original's on a GPU, a smaller one on a CPU."""


def resolve(config: TrainConfig, device: torch.device) -> tuple[TrainConfig, Precision]:
    """Fill in what the config leaves to the machine: the model's width and the precision."""
    if config.model.factory == UNET and not config.model.width:
        width = GPU_WIDTH if device.type == "cuda" else CPU_WIDTH
        config = replace(config, model=replace(config.model, width=width))
    return config, choose_precision(config.precision, device)


def train(config: TrainConfig, ranks: Ranks, command: Sequence[str] = ()) -> State:
    """Train, or go on training, in the config's run folder. Collective.

    Args:
        command: what a person would type to do the same again; for the run's description.

    Returns:
        "finished", or "stopped" when a signal asked for it; the same config goes on from there.

    Raises:
        UserError: see `TrainingData`, `check_same_run`, `Run.train`.
    """
    config, precision = resolve(config, ranks.device)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it torch refuses matrix products on GPUs
        torch.use_deterministic_algorithms(True)
    check_trackers(config.tracking)
    data = TrainingData(config, ranks.rank, ranks.world_size, pin=ranks.device.type == "cuda")
    # All that may be refused comes before the run folder is made.
    model = prepare_model(config, data, ranks)
    loss = Loss(config.loss, class_weights(config.loss, data.pixels).to(ranks.device))
    folder = config.run_dir
    description = describe_run(config, data.identity(), precision.name, command)
    check_same_run(folder, description)
    ranks.barrier()  # nobody writes before all have looked
    if ranks.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        write_description(folder, description)
        if not config.quiet:
            say(_headline(config, folder, data, precision, ranks))
    ranks.barrier()

    def start_trackers(run_id: str | None) -> Trackers:
        trackers = open_trackers(
            config.tracking,
            folder,
            description | {"shard_sets": data_facts(data.sets)},
            run_id=run_id,
            is_main=ranks.is_main,
            job_type="train",
            classes=data.classes,
        )
        log_contact_sheets(trackers, data.sets)
        return trackers

    reporter = RunReporter(folder, data.classes, config.batch_size, ranks, start_trackers, config.quiet)
    run = Run(folder, config, data, model, loss, precision, ranks, reporter)
    try:
        state = run.train()
    except BaseException:
        reporter.finished("failed", **run.summary())
        raise
    reporter.finished(state, **run.summary())
    return state


def _headline(config: TrainConfig, folder: Path, data: TrainingData, precision: Precision, ranks: Ranks) -> str:
    return (
        f"{folder}: {data.samples['train']} patches of {data.patch} x {data.patch} to train, {data.samples['val']} to "
        f"validate; {data.steps} steps of {config.batch_size}, {data.steps_per_epoch} steps an epoch\n"
        f"{ranks.world_size} ranks on {ranks.device.type}, {torch.get_num_threads()} threads each, "
        f"{precision.name} ({precision.reason})"
    )
