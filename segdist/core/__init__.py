"""The ground floor: what all rooms need, and what needs no other room.

Errors, atomic files, the terminal, paths of sets and runs, keyed random numbers, strict parsing of settings, headers of
model files, the machine, the code's version, exit codes. The only room of `segdist` that `shards` and `slurm` import.
Light: no torch, no room above.
"""
