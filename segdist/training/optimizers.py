"""Optimizer and learning rate. The rate is a pure function of the step, so there is nothing to restore on resume."""

import math

import torch
from torch import nn

from segdist.training.config import OptimConfig

ONE_CYCLE_START, ONE_CYCLE_END = 1 / 25, 1e-4
"""Schedule "onecycle": first and last rate as fractions of the maximum (Smith and Topin 2018; fastai's values)."""
ONE_CYCLE_WARMUP = 0.25
"""Schedule "onecycle": default fraction of the run during which the rate rises."""


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 0) in a run of `steps`."""
    share = step / steps
    if config.schedule == "onecycle":
        rise = config.warmup or ONE_CYCLE_WARMUP
        if share < rise:
            return config.lr * _cosine(ONE_CYCLE_START, 1.0, share / rise)
        return config.lr * _cosine(1.0, ONE_CYCLE_END, (share - rise) / (1 - rise))
    warm = min(1.0, (step + 1) / (config.warmup * steps)) if config.warmup else 1.0
    rest = max(0.0, (share - config.warmup) / (1 - config.warmup))
    if config.schedule == "step":
        factor = config.gamma ** sum(share >= milestone for milestone in config.milestones)
    elif config.schedule == "cosine":
        factor = _cosine(1.0, 0.0, rest)
    elif config.schedule == "polynomial":
        factor = (1 - rest) ** config.power
    else:
        factor = 1.0
    return config.lr * warm * factor


def build_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of `model`, fused, because its `found_inf` can skip a step without synchronizing with the host.

    SGD decays all parameters, as published; AdamW only the weights of convolutions and linear layers.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            fused=True,
        )
        if config.momentum:
            # torch allocates these at the first step and fills them in the kernel, which a skipped step doesn't run.
            for parameter in parameters:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.lr, betas=config.betas, fused=True
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use `rate` from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, share))) / 2
