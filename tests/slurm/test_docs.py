"""docs/cluster.md is accurate: the tests and profile keys it names exist, its profile and commands are accepted."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from jobs import submit
from slurm.profiles import Profile, load_profile

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cluster.md").read_text()


def test_every_test_cited_by_the_page_exists() -> None:
    sources = "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    names = re.findall(r"`(test_\w+)(?:\[([\w ]+)[^`]*)?`", PAGE)
    assert len(names) > 12
    for test, case in names:
        assert f"def {test}(" in sources, test
        if test == "test_survival":
            assert f"@scenario\ndef {case}(" in sources, case


def test_every_profile_key_is_listed() -> None:
    listed = re.search(r"All keys: `([^`]*)`", PAGE)
    assert listed is not None
    assert sorted(listed[1].split()) == sorted(item.name for item in fields(Profile))


def test_the_example_profile_is_valid(tmp_path: Path) -> None:
    example = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert example is not None
    (tmp_path / "mycluster.toml").write_text(example[1])
    assert load_profile(str(tmp_path / "mycluster.toml"), "train").ranks_per_node == 8


def test_every_submission_shown_can_be_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    for name in ("scans", "masks", "new-scans"):
        (tmp_path / name).mkdir()
    (tmp_path / "mycluster.toml").write_text((ROOT / "slurm" / "profiles" / "gpu-node.toml").read_text())
    lines = [line.strip() for line in PAGE.replace("\\\n", " ").splitlines() if line.startswith("    segdist submit")]
    assert len(lines) >= 5
    for line in lines:
        words = shlex.split(line)[2:]
        assert submit.main([words[0], "--dry-run", *(word for word in words[1:] if word != "--dry-run")]) == 0, line
