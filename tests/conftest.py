"""What holds for all tests: a private working folder for W&B, no network, GPU tests only where there is a GPU."""

import os
import tempfile
from typing import Any

import pytest

# Set before torch is imported anywhere: many small processes on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Which factories this user has trained with: the tests' own list, not that of whoever runs them.
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="segdist-config-")
os.environ["WANDB_MODE"] = os.environ.get("WANDB_MODE", "offline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is none; leave slow tests out of the coverage, which would slow them down."""
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
    """With several processes, each takes whole files, and one of them all that start a Slurm cluster."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            starts_slurm = nodeid.startswith(("tests/slurm/", "tests/docs/test_cluster_page.py"))
            return "slurm" if starts_slurm else super()._split_scope(nodeid)

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def _warnings_anew() -> None:
    """A warning that another test has seen comes again: `warn` says the same only once per process."""
    from segdist.core import terminal

    terminal._warned.clear()
