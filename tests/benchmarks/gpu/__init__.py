"""What only a GPU can tell, in three parts of at most eight minutes: right, training, inference.

    python -m tests.benchmarks.gpu right        # every test marked gpu: precisions, compile, resume, NCCL, memory
    python -m tests.benchmarks.gpu training     # beside a bare loop, Lightning, MONAI; model FLOPs utilization
    python -m tests.benchmarks.gpu inference    # TIFF to TIFF beside MONAI and the network alone; what overlaps

Made for a machine with one GPU, Python 3.12 and torch 2.11 that has no network: `tests/benchmarks/gpu_wheels.sh`
collects the packages that such a machine lacks, and the program runs from `PYTHONPATH`, uninstalled:

    bash tests/benchmarks/gpu_wheels.sh wheels                                  # where there is a network
    python3 -m pip install -q --no-index --no-deps --target site wheels/*.whl   # on the machine with the GPU
    PYTHONPATH=site:. python3 -m tests.benchmarks.gpu right training inference

Each part prints its tables and bars as it goes, the most telling first, and leaves out, by name, what its time does
not allow (`--seconds`, 480 for each part). Without a GPU, or with `--tiny`, it runs all the same in a few small sizes
on the CPU: that tries the script, and its figures mean nothing.
"""
