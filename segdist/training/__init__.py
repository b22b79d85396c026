"""The training job: from a shard set to a model.

`trainer` holds the loop and `learner` an optimizer step; the other modules are their parts. May import the rooms below
(`core`, `shards`, `model`, `ranks`, `tracking`, `runs`), never `inference`.
"""
