"""The end of a run whose gradients are NaN or infinite step after step: name the samples and keep them."""

from pathlib import Path
from typing import NoReturn

import numpy as np

from segdist.core.errors import UserError
from segdist.core.files import whole_file
from segdist.ranks.process_group import Ranks
from shards.read.batches import Batch


def stop_for_bad_gradients(folder: Path, batch: Batch, steps: int, ranks: Ranks) -> NoReturn:
    """Dump this rank's part of the last bad batch beside the run and raise. Collective.

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
