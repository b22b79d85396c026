"""Processes and devices: this process's place among the ranks, and the machine's resources.

Launchers, process group, device, threads, stop requests, allocator, out of memory, profiler. The only room that reads
launchers' variables or sets up `torch.distributed`. May import `segdist.core` and `shards`.
"""
