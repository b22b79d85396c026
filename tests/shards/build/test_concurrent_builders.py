"""Builders of one set that meet at an awkward moment: each test has one act exactly while another is between two
steps."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from segdist.core import files
from segdist.core.errors import UserError
from shards.build import build, set_folder
from shards.build.build import make_shards
from shards.build.config import MakeShardsConfig
from tests.support.sets import contents, tiny_config


def meanwhile(
    monkeypatch: pytest.MonkeyPatch,
    place: object,
    name: str,
    act: Callable[[], object],
    when: Callable[[Any], bool] = lambda _: True,
) -> list[str]:
    """Run `act` just before the first call of `place.name` whose first argument satisfies `when`; returns a list that
    is empty until then."""
    real, acted = getattr(place, name), list[str]()

    def call(first: Any, *others: Any) -> Any:
        if not acted and when(first):
            acted.append(name)
            act()
        return real(first, *others)

    monkeypatch.setattr(place, name, call)
    return acted


@pytest.mark.parametrize("task", ["", "0/2"])
def test_another_builder_may_start_or_finish_while_the_folder_is_examined(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    config = tiny_config(tmp_path)
    other = replace(config, task=task)
    acted = meanwhile(monkeypatch, set_folder, "_others", lambda: make_shards(other, quiet=True))
    make_shards(config, quiet=True)
    assert acted
    assert contents(config.folder) == contents(small_set)


@pytest.mark.parametrize("name", ["recipe.json", "val-00000.json"])
def test_another_builder_may_finish_the_set_while_a_note_is_written(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config = tiny_config(tmp_path)
    acted = meanwhile(
        monkeypatch, files, "_locked_file", lambda: make_shards(config, quiet=True), lambda path: path.name == name
    )
    make_shards(config, quiet=True)
    assert acted
    assert contents(config.folder) == contents(small_set)


def test_a_note_that_vanishes_from_an_unfinished_set_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> tuple[BinaryIO, Path]:
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr(files, "_locked_file", fail)
    with pytest.raises(UserError, match="the recipe can't be written"):
        make_shards(tiny_config(tmp_path), quiet=True)


def failing_first(monkeypatch: pytest.MonkeyPatch, before: Callable[[], object]) -> None:
    """The first builder acts `before`, and fails once it has claimed the folder."""
    real, calls = build._build_units, list[int]()

    def fail_once(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            before()
            raise UserError("a source can't be read")
        real(*arguments)

    monkeypatch.setattr(build, "_build_units", fail_once)


def expect_failure(config: MakeShardsConfig) -> None:
    with pytest.raises(UserError, match="a source can't be read"):
        make_shards(config, quiet=True)


def test_a_builder_that_fails_keeps_a_set_that_another_finished(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path)
    failing_first(monkeypatch, lambda: make_shards(config, quiet=True))
    expect_failure(config)
    assert contents(config.folder) == contents(small_set)


def test_a_builder_that_fails_keeps_the_shards_of_one_at_work(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path)
    built, failed = threading.Event(), threading.Event()
    finish = build._finish

    def finish_later(*arguments: Any) -> Any:
        built.set()
        assert failed.wait(60)
        return finish(*arguments)

    monkeypatch.setattr(build, "_finish", finish_later)
    with ThreadPoolExecutor(1) as pool:
        other = []

        def start_the_other() -> None:
            other.append(pool.submit(make_shards, config, quiet=True))
            assert built.wait(60)

        failing_first(monkeypatch, start_the_other)
        try:
            expect_failure(config)
        finally:
            failed.set()
        assert other[0].result() is not None
    assert contents(config.folder) == contents(small_set)


def test_a_builder_that_fails_alone_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tmp_path)
    failing_first(monkeypatch, lambda: None)
    expect_failure(config)
    assert not config.folder.exists()
