"""The inference job: from a model and images of any size to masks, probabilities and scores.

`job` is a job from config to scores: `task` says what is to be done, `survey` what is done already, `assignment` who
does the rest, `segment` and `finish` do it. `tiler` holds the loop over tiles; `predictor` is the same tiler for one
image in memory. May import the rooms below (`core`, `shards`, `model`, `ranks`, `tracking`, `runs`), never `training`.
"""
