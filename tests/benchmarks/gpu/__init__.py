"""Benchmarks and checks that need a GPU, in three parts of at most eight minutes: right, training, inference.

    python -m tests.benchmarks.gpu right        # all tests marked gpu: precisions, compile, resume, NCCL, memory
    python -m tests.benchmarks.gpu training     # against a bare loop, Lightning, MONAI; model FLOPs utilization
    python -m tests.benchmarks.gpu inference    # TIFF to TIFF against MONAI and the network alone; overlap of work

Made for an offline machine with one GPU, Python 3.12 and torch 2.11: `tests/benchmarks/gpu_wheels.sh` collects the
missing packages, and the program runs from `PYTHONPATH` without installation:

    bash tests/benchmarks/gpu_wheels.sh wheels                                  # with a network
    python3 -m pip install -q --no-index --no-deps --target site wheels/*.whl   # on the machine with the GPU
    PYTHONPATH=site:. python3 -m tests.benchmarks.gpu right training inference

Each part prints tables and bars as it runs, the most important first, and names what it skips for lack of time
(`--seconds`, 480 per part). Without a GPU, or with `--tiny`, it runs a few small sizes on the CPU, which tests the
script; its figures are then meaningless.
"""
