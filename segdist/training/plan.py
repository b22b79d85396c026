"""The plan of a training run: what it would do and need. For `--dry-run`."""

import time
from dataclasses import replace

import torch
from torch import nn

from segdist.core.terminal import clock
from segdist.model.precision import Precision
from segdist.ranks.launchers import resolve_environment
from segdist.tracking import check_trackers
from segdist.training.config import TrainConfig
from segdist.training.data import TrainingData
from segdist.training.exactness import machine, with_recorded_threads
from segdist.training.initial_model import make_model, resolve
from segdist.training.losses import Loss, class_weights
from segdist.training.out_of_memory import training_attempt
from segdist.training.pace import SUSTAINED, fitting
from segdist.training.run_files import check_same_run, describe_run, length_of_run
from shards.read.order import slots_of_rank

TRIALS = 3
"""Number of timed steps; the fastest counts."""
START_SECONDS = 10.0
"""Allowance for start-up and the first trial."""


def training_plan(config: TrainConfig) -> str:
    """Samples, steps, precision and memory of the run, one line each.

    Raises:
        UserError: any error that would stop the run at its start.
    """
    cuda = config.device != "cpu" and torch.cuda.is_available()
    check_trackers(config.tracking)
    config = with_recorded_threads(config)
    device = torch.device("cuda" if cuda else "cpu")
    config, precision = resolve(config, device)
    environment = resolve_environment()
    data = TrainingData(config, environment.rank, environment.world_size)
    grain = config.grain if config.exact else 1
    slots = slots_of_rank(config.batch_size, environment.rank, environment.world_size, grain)
    micro = grain if config.exact else -(-len(slots) // config.accumulate)
    with torch.device("meta"):  # shapes only: no memory, no time for initial weights
        model = make_model(config.model, data)
    step = step_seconds(config, data, precision, device, micro) * -(-len(slots) // micro)
    config = length_of_run(config)
    if config.minutes and not config.steps:
        # Validation isn't timed here; it takes only a small share of the time.
        config = replace(config, steps=fitting(config.minutes, START_SECONDS, step, 0.0).steps)
    steps = config.steps or data.steps
    weights = sum(parameter.numel() for parameter in model.parameters())
    activations = activation_bytes(model, config, data, micro)
    # Weights, gradients, one (SGD) or two (AdamW) moments, and the averaged weights if any; all float32.
    copies = 2 + (2 if config.optim.optimizer == "adamw" else 1) + (1 if config.optim.ema_decay else 0)
    folder = config.run_dir
    here = machine(torch.device("cuda" if cuda else "cpu")) if config.exact else None
    check_same_run(folder, describe_run(config, data.identity(), precision.name, machine=here))
    return "\n".join(
        [
            "plan:",
            f"  run folder: {folder}{' (exists, would resume)' if (folder / 'config.json').exists() else ''}",
            f"  data: {', '.join(str(item.folder) for item in data.sets)}: {data.samples['train']} patches "
            f"for training, {data.samples['val']} for validation, {data.patch} x {data.patch} x "
            f"{data.channels}, classes {', '.join(info.name for info in data.classes)}",
            f"  steps: {steps}, batch size {config.batch_size}, {data.steps_per_epoch} per epoch; "
            f"{environment.world_size} ranks, {len(slots)} samples per step on this one, {micro} at a time",
            f"  time: about {clock(steps * step * SUSTAINED)} without validation, {step:.3g} s per step (measured on "
            "this machine, with synthetic patches)",
            f"  model: {config.model.factory}, {weights / 1e6:.2f} million weights; {precision.name} "
            f"({precision.reason})",
            f"  memory per rank: {(weights * 4 * copies + activations) / 1e6:.0f} MB for weights and activations "
            f"({activations / 1e6:.0f} MB for {micro} samples), plus torch's own",
        ]
    )


def step_seconds(
    config: TrainConfig, data: TrainingData, precision: Precision, device: torch.device, samples: int
) -> float:
    """Seconds of a forward and backward pass on `samples` synthetic patches."""
    model = make_model(config.model, data).to(device)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stub
    loss = Loss(config.loss, class_weights(config.loss, data.pixels).to(device))
    attempt = training_attempt(model, loss, precision, data.channels)
    seconds = []
    for _ in range(TRIALS):
        began = time.monotonic()
        attempt(samples, data.patch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.monotonic() - began)
    return min(seconds)


def activation_bytes(model: nn.Module, config: TrainConfig, data: TrainingData, samples: int) -> int:
    """Bytes that the forward pass of `samples` patches saves for the backward pass, in fp32.

    Args:
        model: on torch's "meta" device, like everything here.
    """
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.device("meta"):
        images = torch.empty(samples, data.channels, data.patch, data.patch)
        truth = torch.zeros(samples, data.patch, data.patch, dtype=torch.uint8)
        weights = class_weights(config.loss, data.pixels).to("meta")
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        # Keep the graph alive, so that no storage reuses the address of a freed one and is missed.
        result = Loss(config.loss, weights).sums(model(images), truth)
    total = sum(size for address, size in kept.items() if address not in parameters)
    del result
    return total
