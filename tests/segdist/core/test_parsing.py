"""Parsing dictionaries into frozen dataclasses, strictly and with errors that name the key."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from segdist.core.errors import UserError
from segdist.core.parsing import from_dict, merge, read_file, to_dict


@dataclass(frozen=True)
class Inner:
    width: int = 16
    norm: Literal["batch", "group"] = "batch"


@dataclass(frozen=True)
class Outer:
    epochs: int = 1
    rate: float = 0.5
    name: str = "a"
    on: bool = False
    folder: Path | None = None
    numbers: tuple[float, ...] = ()
    inner: Inner = field(default_factory=Inner)


def test_a_config_survives_a_round_trip() -> None:
    config = Outer(epochs=3, folder=Path("a/b"), numbers=(1.0, 2.5), inner=Inner(norm="group"))
    assert from_dict(Outer, to_dict(config), "here") == config
    assert from_dict(Outer, {}, "here") == Outer()


def test_an_integer_is_accepted_as_a_float() -> None:
    assert from_dict(Outer, {"rate": 1}, "here").rate == 1.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "unknown key epoch; did you mean epochs?"),
        ({"inner": {"widht": 3}}, "unknown key inner.widht; did you mean inner.width?"),
        ({"zzz": 3}, "known: epochs, folder"),
    ],
)
def test_an_unknown_key_is_named_with_a_suggestion(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        from_dict(Outer, values, "run.toml")
    assert str(error.value).startswith("run.toml: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"epochs": "3"}, "epochs"),
        ({"epochs": 3.5}, "epochs"),
        ({"on": 1}, "on"),
        ({"name": 3}, "name"),
        ({"rate": "fast"}, "rate"),
        ({"inner": {"norm": "layer"}}, "inner.norm"),
        ({"inner": 3}, "inner"),
        ({"numbers": [1.0, "x"]}, "numbers.1"),
        ({"folder": 3}, "folder"),
    ],
)
def test_a_wrong_type_is_refused_with_the_key(values: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=r"run\.toml: wrong value") as error:
        from_dict(Outer, values, "run.toml")
    assert f"  {key}: " in str(error.value)


def test_merging_descends_into_sections() -> None:
    merged = merge({"a": 1, "s": {"x": 1, "y": 2}}, {"s": {"y": 3}, "b": 4})
    assert merged == {"a": 1, "b": 4, "s": {"x": 1, "y": 3}}


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("epochs = = 3")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(UserError, match=r"bad\.toml: not valid TOML"):
        read_file(tmp_path / "bad.toml")
    with pytest.raises(UserError, match=r"list\.json: must hold a table"):
        read_file(tmp_path / "list.json")
    with pytest.raises(UserError, match=r"no\.toml: can't be read"):
        read_file(tmp_path / "no.toml")
    (tmp_path / "good.json").write_text('{"epochs": 3}')
    assert read_file(tmp_path / "good.json") == {"epochs": 3}
