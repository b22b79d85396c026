"""Exponential moving average of the weights: a smoother model for validation and inference."""

import copy

import torch
from torch import nn


class WeightAverage:
    """average ← average + (1 - decay) (weights - average) after every step that wasn't skipped.

    At first the decay is (1 + t) / (10 + t) at step t, so that the initial weights soon lose their influence.
    Floating-point buffers (batch norm's statistics) are also averaged; integer buffers are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, skipped: torch.Tensor) -> None:
        """Include the weights of `model` after step `step`.

        Args:
            skipped: float32 scalar on the device; 1 if the step was skipped, which leaves the average unchanged.
        """
        share = (1 - min(self.decay, (1 + step) / (10 + step))) * (1 - skipped)
        averages, values = self._floats(self.model), self._floats(model)
        difference = torch._foreach_sub(values, averages)
        torch._foreach_mul_(difference, share)
        torch._foreach_add_(averages, difference)
        for average, value in zip(self.model.buffers(), model.buffers(), strict=True):
            if not average.is_floating_point():
                average.copy_(value)

    @staticmethod
    def _floats(model: nn.Module) -> list[torch.Tensor]:
        return [tensor.detach() for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
