"""Running on Slurm: submission through submitit, cluster profiles, a one-machine Slurm for tests.

Imports only `segdist.core`: it submits the import path of a callable together with its arguments.
"""
