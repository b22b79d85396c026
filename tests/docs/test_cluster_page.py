"""The commands in docs/cluster.md that need Slurm, on the one-machine cluster that the page starts."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import skip_without_slurm
from tests.support.desk import Desk
from tests.support.pages import commands
from tests.support.programs import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A desk with its own mini cluster, which is always stopped at the end."""
    skip_without_slurm()
    cluster = tempfile.mkdtemp(prefix="segdist-docs-")  # the path of a Unix socket must be short
    desk = Desk(tmp_path / "desk", {"SEGDIST_CLUSTER": cluster})
    try:
        yield desk
    finally:
        desk.run("slurm/mini_cluster.sh stop")
        shutil.rmtree(cluster, ignore_errors=True)


def test_a_pipeline_is_submitted_and_watched_on_the_mini_cluster(desk: Desk) -> None:
    shown = [command.text for command in commands(ROOT / "docs" / "cluster.md")]
    start = shown.index('eval "$(slurm/mini_cluster.sh start)"')
    watching = shown.index("segdist queue demo")
    queue, follow, tail = shown[watching : watching + 3]
    assert (follow.split()[1], tail.split()[0]) == ("status", "tail")
    began, submitted, queue_again, crash, boot, stop = shown[start:]
    assert queue == queue_again
    script = [began, submitted, queue, follow, f"timeout 1 {tail} || [[ $? == 124 ]]", queue, crash, boot, stop]
    said = desk.run("\n".join(script))
    assert "runs/demo  finished" in said
    assert (desk.folder / "runs" / "demo" / "best.safetensors").is_file()
