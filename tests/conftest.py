"""Settings for all tests: W&B offline, a private config folder, GPU tests only where there is a GPU."""

import os
import tempfile
from typing import Any

import pytest

# Set before torch is first imported, since tests start many small processes on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The list of factories used in training belongs to the tests, not to the user who runs them.
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="segdist-config-")
os.environ["WANDB_MODE"] = os.environ.get("WANDB_MODE", "offline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` without a GPU; exclude slow tests from coverage, which would slow them further."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.no_cover)
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="NO GPU HERE: this test needs CUDA and was not run"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute tests to processes by file, with all tests that start a Slurm cluster in one process."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            starts_slurm = nodeid.startswith(("tests/slurm/", "tests/docs/test_cluster_page.py"))
            return "slurm" if starts_slurm else super()._split_scope(nodeid)

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def _reset_warnings() -> None:
    """Let each test see every warning, since `warn` prints each message only once per process."""
    from segdist.core import terminal

    terminal._warned.clear()
