"""Gradients of the global batch with the same bits on any number of ranks.

The global batch is cut into grains of m samples, and each rank computes whole grains. A grain is computed on its own,
from weights, buffers and random numbers that are the same on every rank. Its gradient is rounded to a grid
(`grid_sums`) and added, so the sum over all grains has the same bits in any order and on any number of ranks.
"""

import torch
from torch import nn

from segdist.core.keyed import Purpose, hash64
from segdist.model.precision import Precision
from segdist.ranks.own_time import OwnTime
from segdist.ranks.process_group import Ranks
from segdist.training.checkpoint import StateDict
from segdist.training.grid_sums import GridSums
from segdist.training.losses import Loss
from segdist.training.preprocess import MicroBatch


class ExactSums:
    """The engine of `--exact`; the default is `DataParallel`.

    Args:
        model: on the device, the same on all ranks.
        grains: number of grains in the global batch.
        first_grain: number of this rank's first grain.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        precision: Precision,
        ranks: Ranks,
        seed: int,
        grains: int,
        first_grain: int,
    ) -> None:
        self.model, self.loss, self.precision, self.ranks = model, loss, precision, ranks
        self.seed, self.grains, self.first_grain = seed, grains, first_grain
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self._integers = [buffer for buffer in model.buffers() if not buffer.is_floating_point()]
        losses = torch.zeros(len(loss.parts), device=ranks.device)
        self._sums = GridSums([*self._parameters, *self._buffers, losses], grains, ranks.device)
        # As in DDP, because a factory may draw its weights from a generator other than torch's.
        for tensor in (*model.parameters(), *model.buffers()):
            ranks.share_(tensor.detach())
        self._gradients = [torch.empty_like(parameter) for parameter in self._parameters]
        self._grids_known = False
        self.own_time = OwnTime(ranks.device)

    def backward(self, micro_batches: list[MicroBatch], scaler: torch.amp.GradScaler, number: int) -> torch.Tensor:
        """Compute the gradients of global batch `number` into the parameters, and update the buffers. Collective.

        Args:
            micro_batches: this rank's grains.

        Returns:
            float64 (parts,): the loss of the global batch on rank 0, and 0 on the others: `figures` sums over ranks.
        """
        counts = torch.stack([self.loss.counts(truth) for _, truth in micro_batches]).sum(dim=0)
        counts = self.ranks.sum_(counts).clamp(min=1)
        before = [buffer.clone() for buffer in (*self._buffers, *self._integers)]
        while True:
            self.own_time.begin()
            self._sums.start()
            # In lower precision, weights are converted once for all grains: the outermost context keeps them.
            with torch.autocast(self.ranks.device.type, enabled=False):
                for index, grain in enumerate(micro_batches, self.first_grain):
                    for buffer, old in zip((*self._buffers, *self._integers), before, strict=True):
                        buffer.copy_(old)
                    torch.manual_seed(int(hash64(self.seed, Purpose.GRAIN, number, index) >> 1))
                    self._sums.add(self._term(grain, counts, before, scaler))
                    if index == 0:
                        integers = [buffer.clone() for buffer in self._integers]
            self.own_time.end()
            self._sums.reduce(self.ranks)
            overflowed = self._sums.overflowed()
            self._sums.learn()
            # Otherwise again, on coarser grids. On a GPU, asking would mean waiting, so the step is skipped like a bad
            # one, except for the first, which only finds out how large the gradients are.
            if (self.ranks.device.type != "cpu" and self._grids_known) or not bool(overflowed):
                break
        self._grids_known = True
        self._share_integers(integers if self.first_grain == 0 else None)
        return self._hand_out(before, scaler, overflowed)

    def state_dict(self) -> StateDict:
        """The grids, since the bits of all later sums depend on them."""
        return {"exponents": self._sums.exponents}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore a state from `state_dict`."""
        self._sums.exponents = state["exponents"].to(self.ranks.device, copy=True)

    def _term(
        self, grain: MicroBatch, counts: torch.Tensor, before: list[torch.Tensor], scaler: torch.amp.GradScaler
    ) -> list[torch.Tensor | None]:
        """A grain's contribution: gradients, changes of the buffers, loss."""
        images, truth = grain
        for parameter in self._parameters:
            parameter.grad = None
        with self.precision.autocast(images.device):
            outputs = self.model(images)
        shares = self.loss.sums(outputs, truth) / counts
        scaler.scale(shares.sum()).backward()
        gradients = [parameter.grad for parameter in self._parameters]
        if scaler.is_enabled():
            torch._foreach_mul_([gradient for gradient in gradients if gradient is not None], 1 / _scale(scaler))
        # Changes rather than values: a constant buffer must keep its bits, and may be infinite.
        changes = [
            torch.where(buffer == old, 0, buffer - old)
            for buffer, old in zip(self._buffers, before[: len(self._buffers)], strict=True)
        ]
        return [*gradients, *changes, shares.detach()]

    def _share_integers(self, integers: list[torch.Tensor] | None) -> None:
        """Copy the integer buffers after grain 0, given as `integers` on rank 0, to all ranks."""
        if not self._integers:
            return
        values = torch.cat([buffer.long().flatten() for buffer in integers or self._integers])
        if integers is None:
            values.zero_()
        sizes = [buffer.numel() for buffer in self._integers]
        for buffer, value in zip(self._integers, self.ranks.sum_(values).split(sizes), strict=True):
            buffer.copy_(value.view(buffer.shape))

    @torch.no_grad()
    def _hand_out(
        self, before: list[torch.Tensor], scaler: torch.amp.GradScaler, overflowed: torch.Tensor
    ) -> torch.Tensor:
        """Put the sums where a step expects them."""
        changes = [torch.empty_like(buffer) for buffer in self._buffers]
        loss = torch.zeros(len(self.loss.parts), dtype=torch.float64, device=self.ranks.device)
        self._sums.write([*self._gradients, *changes, loss])
        if scaler.is_enabled():  # a power of two; the learner unscales before the optimizer step
            torch._foreach_mul_(self._gradients, _scale(scaler))
        for parameter, gradient, touched in zip(self._parameters, self._gradients, self._touched(), strict=True):
            parameter.grad = gradient if touched else None
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad += torch.where(overflowed | self._sums.bad(), torch.nan, 0.0)
                break  # one NaN is enough for the step to be skipped
        for buffer, old, change in zip(self._buffers, before, changes, strict=False):
            buffer.copy_(old + change / self.grains)
        return loss if self.ranks.is_main else torch.zeros_like(loss)

    def _touched(self) -> list[bool]:
        """Whether any grain reached each parameter; the others get no update."""
        # If this rank's grains reached all of them, the device needn't be asked.
        mine = [parameter.grad is not None for parameter in self._parameters]
        return mine if all(mine) else self._sums.touched()[: len(mine)].tolist()


def _scale(scaler: torch.amp.GradScaler) -> torch.Tensor:
    """The scale of the loss, on the device: asking for it as a number would wait."""
    scale: torch.Tensor = scaler.scale(torch.ones((), device=scaler._device))
    return scale
