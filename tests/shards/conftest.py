"""Small shard sets shared by several test files, built once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.sets import tiny_set


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished npy set. Don't modify it."""
    return tiny_set(tmp_path_factory.mktemp("npy"))


@pytest.fixture(scope="session")
def small_png_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same set with PNG members. Don't modify it."""
    return tiny_set(tmp_path_factory.mktemp("png"), encoding="png")


@pytest.fixture
def fresh_set(tmp_path: Path) -> Callable[..., Path]:
    """Builds a private set, to be damaged."""

    def build(**changes: object) -> Path:
        return tiny_set(tmp_path, **changes)

    return build
