"""Data: labeled images → patches → WebDataset tar shards → batches for a rank.

`images` opens files, `build` writes a set, `read` reads its samples; the manifest and the record layout, which both
use, are next to them. May use torch for tensors, but not `torch.distributed`: a rank is two integers here. From segdist
it imports only `segdist.core`.
"""
