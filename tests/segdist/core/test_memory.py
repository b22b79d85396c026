"""How much memory the system reports as available."""

import subprocess
import sys
from pathlib import Path

from segdist.core.memory import _limits_of_groups, available_memory


def group(folder: Path, limit: str, used: int, cached: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used - cached}\nfile {cached}\nshmem 0\n")


def test_all_enclosing_cgroups_count_and_cached_files_are_free(tmp_path: Path) -> None:
    group(tmp_path / "job/step", "max", 100)
    group(tmp_path / "job", "1000", 900, cached=300)
    (tmp_path / "own").write_text("0::/job/step\n")
    assert list(_limits_of_groups(tmp_path, tmp_path / "own")) == [400]
    assert list(_limits_of_groups(tmp_path, tmp_path / "none")) == []


def test_an_address_space_limit_counts() -> None:
    code = "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30));"
    code += "from segdist.core.memory import available_memory; print(available_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 1 << 30
    here = available_memory()
    assert here is None or here > 0
