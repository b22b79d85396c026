"""The inference job: from a model and images of any size to masks, probabilities and scores.

`tiler` holds the loop over tiles, `job` the work of a rank; `predictor` is the same tiler for one image in memory. May
import the rooms below (`core`, `shards`, `model`, `ranks`, `tracking`, `runs`), never `training`.
"""
