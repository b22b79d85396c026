"""Starting benchmarks (`python -m tests.benchmarks.NAME [parts]`) and running their cases in processes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]


def benchmark(main: Callable[[list[str]], int]) -> NoReturn:
    """Run a benchmark's `main` on the command-line words, with line-buffered output."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.exit(main(sys.argv[1:]))


def start_case(
    name: str, *values: object, cwd: Path = ROOT, world_size: int = 1, environ: dict[str, str] | None = None
) -> "subprocess.Popen[str]":
    """Start `python -m tests.benchmarks.NAME case VALUES` in its own process, or as ranks under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
    module = ["-m", f"tests.benchmarks.{name}", "case", *map(str, values)]
    command = [sys.executable, *(launcher if world_size > 1 else ()), *module]
    settings = {**os.environ, "PYTHONPATH": str(ROOT), **(environ or {})}
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings)


def print_result(result: dict[str, Any]) -> None:
    """Print a case's result, with a single write: ranks share their output."""
    sys.stdout.write(json.dumps(result) + "\n")


def case_result(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Wait for a case and return the JSON object it printed.

    Raises:
        SystemExit: the case failed; contains its output.
    """
    output, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"a case failed with exit code {process.returncode}\n{output}\n{errors}")
    found: dict[str, Any] = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    return found
