"""Freed memory stays with the process unless the environment configures malloc differently."""

import platform
import subprocess
import sys

from tests.support.programs import ROOT, environment

GLIBC = platform.libc_ver()[0] == "glibc"

REPEATED = """
import resource
import numpy as np
from segdist.ranks.allocator import keep_freed_memory

kept = {call}
for _ in range(3):
    np.ones(64 * 2**20, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    np.ones(64 * 2**20, np.uint8)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call: str, **environ: str) -> tuple[str, int]:
    """The result of `call`, and the page faults of four blocks after three blocks of the same size."""
    command = [sys.executable, "-c", REPEATED.format(call=call)]
    done = subprocess.run(command, cwd=ROOT, env=environment(**environ), capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    return kept, int(count)


def test_freed_blocks_are_reused_without_page_faults() -> None:
    kept, with_it = faults("keep_freed_memory()")
    _, without = faults("None")
    assert kept == str(GLIBC)
    assert with_it < without / 10 or not GLIBC


def test_malloc_settings_in_the_environment_win() -> None:
    assert faults("keep_freed_memory()", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"
    assert faults("keep_freed_memory()", GLIBC_TUNABLES="glibc.malloc.trim_threshold=131072")[0] == "False"
