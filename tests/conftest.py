"""Settings for all tests: W&B offline, a private config folder, GPU tests only where there is a GPU."""

import os
import tempfile
from collections import Counter
from typing import Any

import pytest

# Set before torch is first imported, since tests start many small processes on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The list of factories used in training belongs to the tests, not to the user who runs them.
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="segdist-config-")
os.environ["WANDB_MODE"] = os.environ.get("WANDB_MODE", "offline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` without a GPU; exclude slow tests from coverage, which would slow them further.

    With several processes, files with the most slow tests come first, so that the last ones to run are short.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        tests = Counter(one_process(item.nodeid) for item in items)
        slow = Counter(one_process(item.nodeid) for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: (-slow[one_process(item.nodeid)], -tests[one_process(item.nodeid)]))
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.no_cover)
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="NO GPU HERE: this test needs CUDA and was not run"))


def one_process(nodeid: str) -> str:
    """What one process takes as a whole: a test's file, or all files that start a Slurm cluster."""
    starts_slurm = nodeid.startswith(("tests/slurm/", "tests/docs/test_cluster_page.py"))
    return "slurm" if starts_slurm else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several processes, each takes whole files, in the order of the collection."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return one_process(nodeid)

    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.fixture(autouse=True)
def _reset_warnings() -> None:
    """Let each test see every warning, since `warn` prints each message only once per process."""
    from segdist.core import terminal

    terminal._warned.clear()
