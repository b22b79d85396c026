"""Learning and predicting: model, loss, metrics, trainer, tiling, inference, tracking.

May import `shards`; never `jobs` or `slurm`. Everything about ranks is in `segdist.distributed`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segdist.prediction import Predictor, predict

__all__ = ["Predictor", "predict"]


def __getattr__(name: str) -> Any:
    # Imported on demand: `import segdist.train_config` must not wait for torch.
    if name in __all__:
        from segdist import prediction

        return getattr(prediction, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
