"""One Slurm cluster per test session, started in its own folder and removed at the end."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import MINI_CLUSTER, Cluster, skip_without_slurm


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Six nodes with 16 claimed cores and 4 fake GPUs each; Slurm commands in this process use it."""
    skip_without_slurm()
    # Not pytest's tmp_path, since the path of a Unix socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="segdist-slurm-"))
    before = os.environ.get("SLURM_CONF")
    try:
        subprocess.run([MINI_CLUSTER, "start", folder, "--nodes", "6", "--cpus", "16"], check=True)
        os.environ["SLURM_CONF"] = str(folder / "etc" / "slurm.conf")
        yield Cluster(folder)
    finally:
        if (folder / "settings").exists():
            subprocess.run([MINI_CLUSTER, "stop", folder], check=True)
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.pop("SLURM_CONF", None)
        if before is not None:
            os.environ["SLURM_CONF"] = before
