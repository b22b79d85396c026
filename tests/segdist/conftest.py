"""Shared fixtures."""

from pathlib import Path

import pytest

from tests.support.sets import tiny_set


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the shard set data/tiny, one per module."""
    folder = tmp_path_factory.mktemp("work")
    tiny_set(folder / "data")
    return folder
