"""From a shard set to batches: the reader, the order of samples, mixing, checks.

May import `segdist.core` and the modules next to it, but not `shards.build`. No `torch.distributed`: a rank is two
integers here.
"""
