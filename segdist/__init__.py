"""Learning and predicting. `core` is the ground floor of all rooms; the others build on it and on `shards`.

core ← shards ← model, ranks, tracking, runs ← training | inference. Never imports `jobs` or `slurm`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segdist.inference.predictor import Predictor, predict

__all__ = ["Predictor", "predict"]


def __getattr__(name: str) -> Any:
    # Imported on demand: `import segdist.training.config` must not wait for torch.
    if name in __all__:
        from segdist.inference import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
