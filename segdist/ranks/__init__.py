"""Processes and devices: who this process is among the ranks, and what its machine lends it.

Launchers, process group, device, threads, stop requests, allocator, out of memory, profiler. The only room that reads
launchers' variables or sets up `torch.distributed`. May import `segdist.core` and `shards`.
"""
