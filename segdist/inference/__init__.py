"""The inference job: from a model and images of any size to masks, probabilities and scores.

`job` goes from config to scores: `task` lists the work, `survey` finds what is done, `assignment` divides the rest
among the ranks, `segment` and `finish` do it. `tiler` holds the loop over tiles; `predictor` runs it on one image in
memory. May import the rooms below (`core`, `shards`, `model`, `ranks`, `tracking`, `runs`), never `training`.
"""
