"""One optimizer step, the same on one rank and on many: global normalization, bad gradients skipped without waiting.

Only `figures`, called before something is printed, asks the device for numbers; a step never waits for a GPU.
"""

from dataclasses import dataclass

import torch
from torch import nn

from segdist.model.precision import Precision
from segdist.ranks.process_group import Ranks
from segdist.training.checkpoint import StateDict
from segdist.training.config import OptimConfig
from segdist.training.data_parallel import DataParallel
from segdist.training.ema import WeightAverage
from segdist.training.exact_sums import ExactSums
from segdist.training.optimizers import build_optimizer, set_learning_rate
from segdist.training.preprocess import MicroBatch


@dataclass(frozen=True)
class StepFigures:
    """What happened since the last call; the same on all ranks."""

    loss: float
    """Mean over the steps that were not skipped; NaN if all were."""
    loss_parts: dict[str, float]
    grad_norm: float
    """Of the last step, before clipping."""
    skipped: int
    """Skipped steps since the start of the run."""
    skipped_in_a_row: int
    """Number of steps skipped since the last good one."""
    loss_scale: float
    rank_seconds: tuple[float, ...]
    """Seconds per step that each rank works, or waits for its batch, before it needs the others."""


Engine = DataParallel | ExactSums
"""Computes the gradients of a global batch."""


class Learner:
    """The model, the optimizer and everything else that an optimizer step changes.

    Args:
        model: on the device, the same on all ranks.
        engine: computes the gradients of a global batch of `model`.
        ranks: `step` and `figures` are collective.
    """

    def __init__(
        self, model: nn.Module, config: OptimConfig, engine: Engine, precision: Precision, ranks: Ranks
    ) -> None:
        self.model = model
        self.clip_norm = config.clip_norm
        self.engine = engine
        self.ranks = ranks
        self.optimizer = build_optimizer(config, model)
        self.average = WeightAverage(model, config.ema_decay) if config.ema_decay else None
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=precision.scaled)
        self._buffers = [
            [buffer for buffer in model.buffers() if buffer.dtype == dtype]
            for dtype in sorted({buffer.dtype for buffer in model.buffers()}, key=str)
        ]
        self._parts = engine.loss.parts
        zeros = torch.zeros(len(self._parts), dtype=torch.float64, device=ranks.device)
        self._loss_sums, self._good_steps = zeros, zeros.new_zeros(())
        self._grad_norm = zeros.new_zeros(())
        self.skipped = torch.zeros(2, dtype=torch.int64, device=ranks.device)
        """Skipped steps: all of them, and those since the last good one."""

    @property
    def best_model(self) -> nn.Module:
        """The model to validate and to keep: the averaged one, if there is one."""
        return self.model if self.average is None else self.average.model

    def step(self, micro_batches: list[MicroBatch], rate: float, number: int) -> None:
        """Forward, backward and update for this rank's part of global batch `number`. Collective."""
        self.model.train()
        before = [_flat(buffers) for buffers in self._buffers]
        self.optimizer.zero_grad(set_to_none=True)
        sums_of_step = self.engine.backward(micro_batches, self.scaler, number)
        bad = self._update(rate)
        with torch.no_grad():
            for buffers, flat in zip(self._buffers, before, strict=True):
                kept = torch.where(bad > 0, flat, _flat(buffers)).split([buffer.numel() for buffer in buffers])
                torch._foreach_copy_(buffers, [part.view_as(to) for part, to in zip(kept, buffers, strict=True)])
        if self.average is not None:
            self.average.update(self.model, number, bad)
        self._loss_sums += torch.where(bad > 0, 0.0, sums_of_step)
        self._good_steps += 1 - bad
        self.skipped = torch.stack([self.skipped[0] + (bad > 0), (self.skipped[1] + 1) * (bad > 0)])

    def figures(self, waited: float = 0.0) -> StepFigures:
        """The figures since the last call, averaged over steps and summed over ranks; waits for the device. Collective.

        Args:
            waited: seconds that a step of this rank waited for its batch.
        """
        seconds = self._loss_sums.new_zeros(self.ranks.world_size)
        seconds[self.ranks.rank] = waited + self.engine.own_time.mean()
        sums = self.ranks.sum_(torch.cat([self._loss_sums, seconds]))  # each rank's seconds have their own place
        losses = (sums[: len(self._parts)] / self._good_steps).tolist()
        skipped, in_a_row = self.skipped.tolist()
        figures = StepFigures(
            loss=sum(losses),
            loss_parts=dict(zip(self._parts, losses, strict=True)),
            grad_norm=float(self._grad_norm),
            skipped=skipped,
            skipped_in_a_row=in_a_row,
            loss_scale=float(self.scaler.get_scale()),
            rank_seconds=tuple(sums[len(self._parts) :].tolist()),
        )
        self._loss_sums.zero_()
        self._good_steps.zero_()
        return figures

    def share_buffers(self, model: nn.Module) -> None:
        """Copy rank 0's norm buffers of `model` (this learner's model or its average) to all ranks.

        Training uses the statistics of each batch. Only validation reads the running ones, so they needn't be sent at
        every step, as DDP would.
        """
        for buffer in model.buffers():
            self.ranks.share_(buffer)

    def state_dict(self) -> StateDict:
        """Everything that the next step depends on. Collective.

        Everything is the same on all ranks, except for the sums behind the next row of figures.
        """
        return {
            "net": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.model.state_dict(),
            "skipped": self.skipped,
            "loss_sums": torch.tensor(self.ranks.gather(self._loss_sums.tolist()), dtype=torch.float64),
            "good_steps": self._good_steps,
            "engine": self.engine.state_dict(),
        }

    def load_state_dict(self, state: StateDict) -> None:
        """Restore a state from `state_dict`, from any number of ranks."""
        self.model.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.model.load_state_dict(state["average"])
        self.skipped = state["skipped"].to(self.ranks.device, copy=True)
        sums: torch.Tensor = state["loss_sums"]  # (ranks, parts)
        if len(sums) != self.ranks.world_size:
            sums = torch.cat([sums.sum(dim=0, keepdim=True), sums.new_zeros(self.ranks.world_size - 1, sums.shape[1])])
        self._loss_sums = sums[self.ranks.rank].to(self.ranks.device, copy=True)
        self._good_steps = state["good_steps"].to(self.ranks.device, copy=True)
        self.engine.load_state_dict(state.get("engine", {}))  # from version 1 on

    def _update(self, rate: float) -> torch.Tensor:
        """Clip and apply the gradients, unless one is NaN or infinite.

        The gradients are already reduced, so all ranks decide the same without communicating.

        Returns:
            float32 scalar: 1 if they were not applied, otherwise 0.
        """
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        bad = (~norm.isfinite()).float()
        if self.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.clip_norm, norm)
        set_learning_rate(self.optimizer, rate)
        # Fused optimizers leave weights and moments unchanged if this is 1; GradScaler uses the same attribute.
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.step()
        if self.scaler.is_enabled():
            self.scaler.update()
        self._grad_norm = norm.detach()
        return bad


def _flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    """All values in one new tensor, so that a GPU starts one kernel instead of one per norm layer."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
