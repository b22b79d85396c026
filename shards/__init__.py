"""Data: labeled images → patches → WebDataset tar shards → batches for a rank.

`images` opens files, `build` writes a set, `read` gives its samples; the manifest and the layout of records lie next to
them, for both. May use torch for tensors, never `torch.distributed`: a rank is two integers here. Of segdist it imports
`segdist.core` alone.
"""
