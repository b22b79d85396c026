"""Gradients of the global batch by DistributedDataParallel, which sums over ranks during the backward pass."""

import inspect
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from segdist.core.keyed import Purpose, hash64
from segdist.model.precision import Precision
from segdist.model.recorded import Recorded
from segdist.model.unet import UNet
from segdist.ranks.own_time import OwnTime
from segdist.ranks.process_group import Ranks
from segdist.training.checkpoint import StateDict
from segdist.training.losses import Loss
from segdist.training.preprocess import MicroBatch

_DDP_ARGUMENTS = inspect.signature(DistributedDataParallel.__init__).parameters
BUFFERS_STAY = "forward_sync_buffers" if "forward_sync_buffers" in _DDP_ARGUMENTS else "broadcast_buffers"
"""DDP's argument which, if False, stops it from sending buffers at every step; torch 2.11 still has the older name."""


class DataParallel:
    """The default engine of a `Learner`, and the fastest. The number of ranks affects results only by rounding.

    Args:
        model: on the device, the same on all ranks.
        compiled: run it through torch.compile.
    """

    def __init__(
        self, model: nn.Module, loss: Loss, precision: Precision, ranks: Ranks, seed: int, compiled: bool
    ) -> None:
        self.seed = seed
        self.loss, self.precision, self.ranks = loss, precision, ranks
        self._ddp = _distributed(model, ranks)
        wrapped = self._ddp or model
        self._wrapped: nn.Module = torch.compile(wrapped) if compiled else wrapped  # type: ignore[assignment]
        self._parameters = list(model.parameters())
        self.own_time = OwnTime(ranks.device)
        # Other models may read values back from the device, and a graph can't contain DDP's sums or torch.compile's
        # kernels.
        alone_on_gpu = ranks.device.type == "cuda" and ranks.world_size == 1
        self._recorded: Recorded[tuple[torch.Tensor, list[torch.Tensor | None]]] | None = None
        if alone_on_gpu and not compiled and isinstance(model, UNet):
            self._recorded = Recorded("the training step")

    def backward(self, micro_batches: list[MicroBatch], scaler: torch.amp.GradScaler, number: int) -> torch.Tensor:
        """Store the gradients of global batch `number` in the parameters. Collective.

        The gradient is that of Σ loss / Σ count, both over all ranks and micro-batches. The factor R cancels DDP's mean
        over ranks.

        Returns:
            float64 (parts,): this rank's numerators over the global denominators.
        """
        # Makes dropout and the like a function of the step, too, so that no generator state must be restored.
        torch.manual_seed(int(hash64(self.seed, Purpose.STEP, number, self.ranks.rank) >> 1))
        if self._recorded is None or len(micro_batches) > 1:
            return self._backward(micro_batches, scaler)

        def compute(images: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
            for parameter in self._parameters:
                parameter.grad = None
            return self._backward([(images, truth)], scaler), [parameter.grad for parameter in self._parameters]

        total, gradients = self._recorded(compute, *micro_batches[0])
        # A graph reuses the same memory for gradients, but `zero_grad` has detached them from the parameters.
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        return total

    def _backward(self, micro_batches: list[MicroBatch], scaler: torch.amp.GradScaler) -> torch.Tensor:
        counts = torch.stack([self.loss.counts(truth) for _, truth in micro_batches]).sum(dim=0)
        counting = self._start_sum(counts)
        if counting is not None:
            self.own_time.begin()
        total = torch.zeros(len(self.loss.parts), dtype=torch.float64, device=self.ranks.device)
        for index, (images, truth) in enumerate(micro_batches):
            with self._gradients_stay_here(index < len(micro_batches) - 1):
                with self.precision.autocast(images.device):
                    outputs = self._wrapped(images)
                sums = self.loss.sums(outputs, truth)
                if counting is not None:
                    self.own_time.end()
                    self.ranks.at("sum of the loss's counts")
                    counting.wait()
                    counting = None
                shares = sums / counts.clamp(min=1)
                if index == len(micro_batches) - 1:
                    self.ranks.at("sum of gradients")
                scaler.scale(shares.sum() * self.ranks.world_size).backward()
            total += shares.detach()
        return total

    def state_dict(self) -> StateDict:
        """Empty: no state is kept between steps."""
        return {}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore a state from `state_dict`."""

    def _start_sum(self, counts: torch.Tensor) -> dist.Work | None:
        """Start summing the denominators over the ranks, during the forward pass."""
        return dist.all_reduce(counts, async_op=True) if self.ranks.world_size > 1 else None

    def _gradients_stay_here(self, yes: bool) -> AbstractContextManager[None]:
        return self._ddp.no_sync() if yes and self._ddp is not None else nullcontext()


def _distributed(model: nn.Module, ranks: Ranks) -> DistributedDataParallel | None:
    """The model with gradients averaged over the ranks; None for a single one."""
    if ranks.world_size == 1:
        return None
    return DistributedDataParallel(
        model,
        device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **{BUFFERS_STAY: False},  # type: ignore[arg-type]
    )
