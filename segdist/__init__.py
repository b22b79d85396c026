"""Learning and predicting: model, loss, metrics, trainer, tiling, inference, tracking.

May import `shards`; never `jobs` or `slurm`. Everything about ranks is in `segdist.distributed`.
"""
