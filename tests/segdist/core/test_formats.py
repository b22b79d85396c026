"""Format versions: older files are readable, newer ones are refused with one clear sentence."""

from typing import Any

import pytest

from segdist.core.errors import UserError
from segdist.core.formats import read_version, stamped


def test_a_stamped_file_records_its_version() -> None:
    assert stamped({"a": 1}, 3) == {"format_version": 3, "a": 1}
    assert read_version(stamped({}, 3), 3, "x.json") == 3


def test_files_without_a_version_count_as_the_oldest() -> None:
    assert read_version({"a": 1}, 3, "x.json") == 0


def test_a_file_from_a_newer_program_is_refused_with_the_fix() -> None:
    with pytest.raises(UserError, match=r"x.json: format version 4, written by a newer segdist.*up to 3; update it"):
        read_version({"format_version": 4}, 3, "x.json")


@pytest.mark.parametrize("content", [[], "text", None, {"format_version": "2"}, {"format_version": True}])
def test_an_invalid_version_counts_as_damage(content: Any) -> None:
    with pytest.raises(UserError, match=r"x\.json: damaged"):
        read_version(content, 3, "x.json")
