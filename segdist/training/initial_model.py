"""The initial model of a run, and the settings that depend on the machine."""

from dataclasses import replace

import torch

from segdist.core.errors import UserError
from segdist.core.paths import CHECKPOINTS, run_dir
from segdist.core.terminal import warn
from segdist.model.card import resolve_model_path
from segdist.model.config import UNET, ModelConfig
from segdist.model.factory import build_model, stride_multiple
from segdist.model.model_file import load_weights
from segdist.model.precision import Precision, choose_precision
from segdist.ranks.process_group import Ranks
from segdist.training.config import TrainConfig
from segdist.training.data import TrainingData
from segdist.training.warm_start import take_over

GPU_WIDTH, CPU_WIDTH = 64, 16
"""Default base width of the U-Net: the original's on a GPU, smaller on a CPU."""


def resolve(config: TrainConfig, device: torch.device) -> tuple[TrainConfig, Precision]:
    """Choose settings left open that depend on the machine: the model's width and the precision."""
    if config.model.factory == UNET and not config.model.width:
        width = GPU_WIDTH if device.type == "cuda" else CPU_WIDTH
        config = replace(config, model=replace(config.model, width=width))
    return config, choose_precision(config.precision, device)


def make_model(config: ModelConfig, data: TrainingData) -> torch.nn.Module:
    """Build the model for the data's classes and channels with its factory.

    Raises:
        UserError: the factory fails, or the model doesn't accept patches of this size.
    """
    model = build_model(config, data.channels, len(data.classes))
    multiple = stride_multiple(config, model)
    if data.patch % multiple:
        raise UserError(
            f"the model needs image sides that are multiples of {multiple}, but the patches have {data.patch} pixels: "
            "make shards with another --patches.size, or lower --model.depth"
        )
    return model


def _take_over_source(config: TrainConfig, model: torch.nn.Module, data: TrainingData, ranks: Ranks) -> None:
    """Copy the weights of `--init-from`. If they are gone, a run with checkpoints resumes without them.

    `Trainer` then refuses to resume if all checkpoints are damaged.
    """
    path = run_dir(config.init_from)
    if not path.exists() and any((config.run_dir / CHECKPOINTS).glob("step-*.pt")):
        if ranks.is_main:
            warn(f"--init-from {config.init_from}: {path} is gone; the run resumes from its own checkpoint")
        return
    take_over(load_weights(resolve_model_path(path)), model, data.classes, speak=ranks.is_main)


def make_initial_model(config: TrainConfig, data: TrainingData, ranks: Ranks) -> torch.nn.Module:
    """A run's model with its initial weights, the same on all ranks, on the rank's device.

    Raises:
        UserError: see `make_model`; no weight of `--init-from` matches.
    """
    torch.manual_seed(config.seed)
    model = make_model(config.model, data)
    if config.init_from:
        _take_over_source(config, model, data, ranks)
    if config.sync_batch_norm and ranks.device.type == "cuda":
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    elif config.sync_batch_norm and ranks.is_main:
        warn("--sync-batch-norm works only on GPUs: here, each rank normalizes over its own part of the batch")
    model = model.to(ranks.device)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stub
    return model
