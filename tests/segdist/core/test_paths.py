"""Names of sets and runs resolve inside data/ and runs/ unless they are paths; impossible file names are refused."""

from pathlib import Path

import pytest

from segdist.core.errors import UserError
from segdist.core.paths import plain_name, run_dir, set_dir


@pytest.mark.parametrize("name", ["..", ".", "", "a\0b", "a\nb", "x" * 300, "ä" * 200])
def test_impossible_names_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for read in (run_dir, set_dir, plain_name):
        with pytest.raises(UserError, match="name"):
            read(name)


def test_a_plain_name_is_not_a_path() -> None:
    assert plain_name("cells 2") == "cells 2"
    with pytest.raises(UserError, match=r"--name '\.\./cells': not a name"):
        plain_name("../cells")


def test_paths_stay_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_dir("cells") == Path("runs/cells")
    assert run_dir("../cells") == Path("../cells")
    assert set_dir("https://example.org/cells") == "https://example.org/cells"
    (tmp_path / "config.json").touch()
    assert run_dir(".") == Path()  # the run in the current folder
