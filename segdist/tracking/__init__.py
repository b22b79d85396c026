"""What leaves a run while it goes on: Weights & Biases, TensorBoard.

Trackers are a convenience beside `metrics.jsonl`, which the trainer writes itself and which is the record of the run.
So nothing here may slow a step, fail a run, or wait for a network for more than seconds. Only rank 0 has trackers.
"""

from segdist.tracking.config import TrackingConfig
from segdist.tracking.tracker import Tracker
from segdist.tracking.trackers import Trackers, check_trackers, open_trackers

__all__ = ["Tracker", "Trackers", "TrackingConfig", "check_trackers", "open_trackers"]
