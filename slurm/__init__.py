"""Where it runs: submission through submitit, cluster profiles, a one-machine Slurm for tests.

Imports `segdist.core` and no other room: it submits the import path of a callable together with its arguments.
"""
