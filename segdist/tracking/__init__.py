"""Live tracking of runs: Weights & Biases, TensorBoard.

Trackers are a convenience in addition to `metrics.jsonl`, which the trainer writes itself and which is the run's
record. So nothing here may slow a step, fail a run, or wait for a network for more than a few seconds. Only rank 0 has
trackers.
"""

from segdist.tracking.config import TrackingConfig
from segdist.tracking.tracker import Tracker
from segdist.tracking.trackers import Trackers, check_trackers, open_trackers

__all__ = ["Tracker", "Trackers", "TrackingConfig", "check_trackers", "open_trackers"]
