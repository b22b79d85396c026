"""Stop a run with repeated NaN or infinite gradients: name the samples and save them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import numpy as np

from segdist.core.errors import UserError
from segdist.core.files import whole_file
from segdist.ranks.out_of_memory import is_out_of_memory
from segdist.ranks.process_group import Ranks
from shards.manifest import IGNORE
from shards.read.batches import Batch


@contextmanager
def bad_labels_named(batch: Batch, num_classes: int) -> Iterator[None]:
    """Turn a loss's error about invalid labels into one that names the samples.

    Raises:
        UserError: a shard was overwritten, or damaged in memory.
    """
    try:
        yield
    except (IndexError, RuntimeError) as error:
        if is_out_of_memory(error):  # unrelated to the labels, and there is no memory to inspect them
            raise
        masks = batch.masks.numpy()
        wrong = ((masks >= num_classes) & (masks != IGNORE)).any(axis=(1, 2))
        names = [name for name, bad in zip(batch.names(), wrong, strict=True) if bad]
        if not names:
            raise
        told = UserError(
            f"labels outside the {num_classes} classes, in {', '.join(names[:4])}: the shard was damaged or "
            "overwritten; `segdist shards verify` checks the whole set"
        )
        told.on_this_rank = True
        raise told from error


def stop_for_bad_gradients(folder: Path, batch: Batch, steps: int, ranks: Ranks) -> NoReturn:
    """Dump this rank's part of the last bad batch to the run folder and raise. Collective.

    Raises:
        UserError: always; names the samples of all ranks.
    """
    path = folder / f"bad-batch-rank{ranks.rank}.npz"
    with whole_file(path) as file:
        np.savez(file, images=batch.images.numpy(), masks=batch.masks.numpy(), flips=batch.flips.numpy())
    names = [name for part in ranks.gather(batch.names()) for name in part]
    raise UserError(
        f"NaN or infinite gradients in {steps} steps in a row, the last of epoch {batch.epoch}, step {batch.step}. "
        f"Its samples: {', '.join(names)}; their arrays are in {folder}/bad-batch-rank*.npz. "
        "Lower --optim.lr, set --optim.clip-norm 1, or train with --precision fp32; the checkpoints are kept"
    )
