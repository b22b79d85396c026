"""What a training run would do and need, without doing it."""

import torch
from torch import nn

from segdist.ranks.launchers import resolve_environment
from segdist.tracking import check_trackers
from segdist.training.config import TrainConfig
from segdist.training.data import TrainingData
from segdist.training.exactness import machine, with_recorded_threads
from segdist.training.initial_model import make_model, resolve
from segdist.training.losses import Loss, class_weights
from segdist.training.run_files import check_same_run, describe_run
from shards.read.order import slots_of_rank


def training_plan(config: TrainConfig) -> str:
    """Samples, steps, precision and memory of the run, a line each.

    Raises:
        UserError: whatever would stop the run at its start.
    """
    cuda = config.device != "cpu" and torch.cuda.is_available()
    check_trackers(config.tracking)
    config = with_recorded_threads(config)
    config, precision = resolve(config, torch.device("cuda" if cuda else "cpu"))
    environment = resolve_environment()
    data = TrainingData(config, environment.rank, environment.world_size)
    grain = config.grain if config.exact else 1
    slots = slots_of_rank(config.batch_size, environment.rank, environment.world_size, grain)
    micro = grain if config.exact else -(-len(slots) // config.accumulate)
    with torch.device("meta"):  # shapes, but no memory and no time for initial weights
        model = make_model(config.model, data)
    weights = sum(parameter.numel() for parameter in model.parameters())
    activations = activation_bytes(model, config, data, micro)
    # Weights, gradients and one (SGD) or two (AdamW) moments, in float32; and the average's copy.
    copies = 2 + (2 if config.optim.optimizer == "adamw" else 1) + (1 if config.optim.ema_decay else 0)
    folder = config.run_dir
    here = machine(torch.device("cuda" if cuda else "cpu")) if config.exact else None
    check_same_run(folder, describe_run(config, data.identity(), precision.name, machine=here))
    return "\n".join(
        [
            "plan:",
            f"  run folder: {folder}{' (exists, would go on)' if (folder / 'config.json').exists() else ''}",
            f"  data: {', '.join(str(item.folder) for item in data.sets)}: {data.samples['train']} patches "
            f"to train, {data.samples['val']} to validate, {data.patch} x {data.patch} x "
            f"{data.channels}, classes {', '.join(info.name for info in data.classes)}",
            f"  steps: {data.steps} of {config.batch_size} samples, {data.steps_per_epoch} an epoch; "
            f"{environment.world_size} ranks, {len(slots)} samples a step on this one, {micro} at a time",
            f"  model: {config.model.factory}, {weights / 1e6:.2f} million weights; {precision.name} "
            f"({precision.reason})",
            f"  memory a rank: {(weights * 4 * copies + activations) / 1e6:.0f} MB for weights and activations "
            f"({activations / 1e6:.0f} MB for {micro} samples), and what torch itself takes",
        ]
    )


def activation_bytes(model: nn.Module, config: TrainConfig, data: TrainingData, samples: int) -> int:
    """Bytes that the forward pass of `samples` patches keeps for the backward pass, in fp32.

    Args:
        model: on torch's "meta" device, as is everything here.
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
        # The result keeps the graph alive, so that no storage is counted under the address of a freed one.
        result = Loss(config.loss, weights).sums(model(images), truth)
    total = sum(size for address, size in kept.items() if address not in parameters)
    del result
    return total
