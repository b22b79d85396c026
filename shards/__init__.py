"""Data: labelled images → patches → WebDataset tar shards → batches for a rank.

Lives here: reading images and masks, drawing synthetic ones, cutting patches, writing and checking shard sets,
the order of samples, the batch reader and the augmentations. May use torch for tensors, never `torch.distributed`:
a rank is two integers here. Imports no other room.
"""
