"""Small shard sets that several test files read; built once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from shards.build.build import make_shards
from shards.build.recipe import MakeShardsConfig, PatchesConfig, SyntheticConfig


def small_config(root: Path, **changes: object) -> MakeShardsConfig:
    """14 drawn images of 80 x 60, 6 patches of 32 x 32 each, in this process."""
    settings: dict[str, object] = {
        "root": root,
        "processes": 1,
        "synthetic": SyntheticConfig(train=14, test=2, width=60, height=80),
        "patches": PatchesConfig(size=32, per_image=6),
    }
    return MakeShardsConfig(**{**settings, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished npy set. Don't change it."""
    config = small_config(tmp_path_factory.mktemp("npy"))
    make_shards(config, quiet=True)
    return config.folder


@pytest.fixture(scope="session")
def small_png_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same set with PNG members. Don't change it."""
    config = small_config(tmp_path_factory.mktemp("png"), encoding="png")
    make_shards(config, quiet=True)
    return config.folder


@pytest.fixture
def fresh_set(tmp_path: Path) -> Callable[..., Path]:
    """Builds a set of one's own, to be damaged."""

    def build(**changes: object) -> Path:
        config = small_config(tmp_path, **changes)
        make_shards(config, quiet=True)
        return config.folder

    return build


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
