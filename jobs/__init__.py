"""Command-line entry points: parse a config, set up ranks, call the other rooms. No logic of their own.

Each job is a module with `main(argv)`: `segdist train …` and `torchrun jobs/train.py …` run the same function.
"""
