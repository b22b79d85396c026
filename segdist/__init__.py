"""Training and inference, and the public Python API. `core` is the ground floor of all rooms; the others build on it.

core ← shards ← model, ranks, tracking, runs ← training | inference ← the modules here: `api`, `set_job`. Never imports
`jobs` or `slurm`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segdist.api import infer, make_shards, train
    from segdist.core.errors import UserError
    from segdist.inference.predictor import Predictor, predict
    from shards.read.reader import ShardSet

__version__ = "0.2.0"

__all__ = ["Predictor", "ShardSet", "UserError", "__version__", "infer", "make_shards", "predict", "train"]

_HOMES = {
    "make_shards": "segdist.api",
    "train": "segdist.api",
    "infer": "segdist.api",
    "predict": "segdist.inference.predictor",
    "Predictor": "segdist.inference.predictor",
    "ShardSet": "shards.read.reader",
    "UserError": "segdist.core.errors",
}


def __getattr__(name: str) -> Any:  # Any: the types are those of the imports above
    # Imported on demand, so that `import segdist.training.config` doesn't wait for torch.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
