"""Explain errors of a user's own model, and how to fix them."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from segdist.core.errors import UserError
from segdist.core.terminal import warn
from segdist.ranks.process_group import Ranks
from segdist.training.losses import Loss
from segdist.training.preprocess import MicroBatch

MOST_NAMES = 6


@contextmanager
def explain_model_errors(batch_size: int, accumulate: int, world_size: int) -> Iterator[None]:
    """Turn torch's error about batch norm into advice.

    Raises:
        UserError: a batch norm has one value per channel; only the rank with the smallest part of the batch may hit it.
    """
    try:
        yield
    except ValueError as error:
        if "Expected more than 1 value per channel" not in str(error):
            raise
        told = UserError(
            f"a batch norm of the model sees one value per channel, which has no variance: {batch_size} patches "
            f"(--batch-size) on {world_size} ranks with --accumulate {accumulate} are one patch at a time; "
            "raise --batch-size, lower --accumulate, or replace that norm"
        )
        told.on_this_rank = True
        raise told from None


def check_gradients(model: nn.Module, loss: Loss, batch: MicroBatch, ranks: Ranks, *, exact: bool) -> None:
    """Find parameters that get no gradient: a single rank leaves them unchanged, but DDP would wait for them forever.

    Works on a copy outside DDP.

    Args:
        exact: gradients are summed without DDP, so such parameters stay unchanged on any number of ranks.

    Raises:
        UserError: on several ranks under DDP; names the parameters.
    """
    images, truth = batch
    alone = copy.deepcopy(model).train()
    for module in alone.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.__class__ = nn.BatchNorm2d  # type: ignore[assignment]  # it would wait for the other ranks
    alone.zero_grad(set_to_none=True)
    loss.sums(alone(images), truth).sum().backward()
    missing = [name for name, each in alone.named_parameters() if each.requires_grad and each.grad is None]
    if not missing:
        return
    names = ", ".join(missing[:MOST_NAMES]) + (f" and {len(missing) - MOST_NAMES} more" if missing[MOST_NAMES:] else "")
    found = f"parameters of the model get no gradient: {names}"
    if ranks.world_size > 1 and not exact:
        raise UserError(
            f"{found}. On several ranks, DistributedDataParallel needs all of them: return what they compute from the "
            "model (--loss.auxiliary weights auxiliary outputs), set requires_grad_(False) on them in the factory, "
            "remove them, or train with --exact"
        )
    if ranks.is_main:
        warn(f"{found}; they stay unchanged")


def check_state(model: nn.Module) -> None:
    """Refuse state that a model file can't hold.

    Raises:
        UserError: names the entries that aren't tensors.
    """
    others = [name for name, value in model.state_dict().items() if not isinstance(value, torch.Tensor)]
    if others:
        raise UserError(
            f"--model.factory: the model's state holds {', '.join(others[:MOST_NAMES])}, which is not a tensor; model "
            "files hold only tensors: return a tensor from its get_extra_state, or remove it"
        )
