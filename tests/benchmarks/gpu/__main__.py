"""The command line of the GPU benchmark."""

import argparse
import sys

from tests.benchmarks.bars import Bars
from tests.benchmarks.gpu import inference, right, training
from tests.benchmarks.gpu.machine import Machine

PARTS = {"right": right.run, "training": training.run, "inference": inference.run}


def main(arguments: list[str]) -> int:
    """Run the named parts; return the exit code, 1 if a bar is missed, except in the tiny form."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu", description="Benchmarks and checks that need a GPU."
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: all")
    parser.add_argument("--seconds", type=float, default=480, help="time limit per part; what doesn't fit is skipped")
    parser.add_argument("--tiny", action="store_true", help="small sizes on the CPU, to test the script itself")
    options = parser.parse_args(arguments)
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    bars, machine = Bars(), Machine(0, tiny=options.tiny)
    for name in options.parts or PARTS:
        machine = Machine(options.seconds, tiny=options.tiny)
        print(f"==== {name}: {machine}", flush=True)
        PARTS[name](machine, bars)
        print(f"==== {name}: {machine.spent():.0f} s", flush=True)
    code = bars.finish()
    return 0 if machine.tiny else code


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.exit(main(sys.argv[1:]))
