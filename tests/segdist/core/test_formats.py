"""Format versions: old files are read, newer ones refused in a sentence."""

from typing import Any

import pytest

from segdist.core.errors import UserError
from segdist.core.formats import read_version, stamped


def test_a_stamped_file_says_its_version() -> None:
    assert stamped({"a": 1}, 3) == {"format_version": 3, "a": 1}
    assert read_version(stamped({}, 3), 3, "x.json") == 3


def test_files_without_a_version_are_older_than_all() -> None:
    assert read_version({"a": 1}, 3, "x.json") == 0


def test_a_file_of_a_later_program_is_refused_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"x.json: format version 4, written by a newer segdist.*up to 3; update it"):
        read_version({"format_version": 4}, 3, "x.json")


@pytest.mark.parametrize("content", [[], "text", None, {"format_version": "2"}, {"format_version": True}])
def test_what_is_no_version_is_damage(content: Any) -> None:
    with pytest.raises(UserError, match=r"x\.json: damaged"):
        read_version(content, 3, "x.json")
