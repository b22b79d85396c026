"""From "out of memory" to the settings that would fit."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from segdist.train_config import TrainConfig
from shards.errors import UserError


@contextmanager
def explain_out_of_memory(config: TrainConfig, patch: int, world_size: int = 1) -> Iterator[None]:
    """Turn the allocator's error into one that names the settings to change.

    Raises:
        UserError: the context ran out of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        local = -(-config.batch_size // world_size)
        micro = -(-local // config.accumulate)
        if micro > 1:
            way_out = (
                f"--accumulate {config.accumulate * 2} computes {-(-micro // 2)} samples at a time with the same result"
            )
        else:
            way_out = "one sample is too much: use smaller patches, a lower --model.width, or --precision bf16"
        raise UserError(
            f"out of memory with {micro} patches of {patch} x {patch} at a time "
            f"(--batch-size {config.batch_size} over {world_size} ranks, --accumulate {config.accumulate}): {way_out}. "
            f"torch said: {str(error).splitlines()[0]}"
        ) from None
