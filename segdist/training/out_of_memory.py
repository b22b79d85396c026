"""Turn an out-of-memory error into settings that fit."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from segdist.core.errors import UserError
from segdist.model.precision import Precision
from segdist.ranks.out_of_memory import is_out_of_memory, largest_that_fits, release_frames
from segdist.training.losses import Loss


@contextmanager
def explain_out_of_memory(
    batch_size: int,
    accumulate: int,
    patch: int,
    multiple: int,
    world_size: int,
    try_out: Callable[[int, int], None],
    grain: int = 0,
) -> Iterator[None]:
    """Turn the allocator's error into one that names settings that fit.

    Args:
        batch_size, accumulate: the config's.
        patch: patch side in pixels.
        multiple: patch sides must be multiples of this.
        try_out: runs one step on `count` patches of `side` pixels; see `training_attempt`.
        grain: the grain of an exact run, which ignores `accumulate`; 0 otherwise.

    Raises:
        UserError: the context ran out of memory.
    """
    try:
        yield
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0]
        release_frames(error)  # the search needs the memory of the step's tensors
    local = grain or -(-batch_size // world_size)
    micro = -(-local // accumulate)
    # Leave a margin of a quarter, because memory may be fragmented differently at the next start.
    fitting = largest_that_fits(lambda count: try_out(count + count // 4, patch), micro)
    # If not even one patch fits, smaller ones may.
    side = patch if fitting else multiple * largest_that_fits(lambda n: try_out(1, n * multiple), patch // multiple)
    flag = "--grain 1" if grain else f"--accumulate {local}"
    if fitting and grain:
        way_out = f"--grain {fitting} fits; it can't change during a run, so start a new one with another --name"
    elif fitting:
        parts = -(-local // fitting)
        way_out = f"--accumulate {parts} fits: {-(-local // parts)} patches at a time, the same global batch"
    elif side:
        way_out = (
            f"not even one fits, but one of {side} x {side} does: make a set with --patches.size {side}, and train "
            f"with {flag}, or use a lower --model.width"
        )
    else:
        way_out = "not even one of the smallest patches fits: use a lower --model.width, or --precision bf16"
    why = f"--batch-size {batch_size} over {world_size} ranks, --accumulate {accumulate}"
    problem = UserError(
        f"out of memory with {micro} patches of {patch} x {patch} at a time "
        f"({f'--grain {grain}' if grain else why}); {way_out}. torch said: {said}"
    )
    problem.on_this_rank = True
    raise problem from None


def training_attempt(model: nn.Module, loss: Loss, precision: Precision, channels: int) -> Callable[[int, int], None]:
    """A function that runs forward and backward on `count` synthetic patches of `side` pixels, with a copy of `model`.

    The copy is outside DDP, so one rank can try alone, and the run's weights and gradients stay unchanged.
    """

    def attempt(count: int, patch: int) -> None:
        weight = next(model.parameters())
        alone = copy.deepcopy(model)
        for module in alone.modules():
            if isinstance(module, nn.SyncBatchNorm):
                module.__class__ = nn.BatchNorm2d  # type: ignore[assignment]  # it would wait for the other ranks
        images = torch.zeros(count, channels, patch, patch, device=weight.device)
        truth = torch.zeros(count, patch, patch, dtype=torch.uint8, device=weight.device)
        with precision.autocast(weight.device):
            outputs = alone(images)
        loss.sums(outputs, truth).sum().backward()

    return attempt
