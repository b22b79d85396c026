"""A short run of the fuzzer, and checks that it detects failures."""

from pathlib import Path

import pytest

from segdist.core.errors import UserError
from tests.fuzz.__main__ import fuzz
from tests.fuzz.child import Case
from tests.fuzz.subjects import SUBJECTS, Subject, WrongContent

FILES = 20
"""Files per kind; about 20 seconds in total."""


def test_damaged_files_give_pixels_or_an_error_that_names_them() -> None:
    outcomes = fuzz([subject.name for subject in SUBJECTS], FILES, seed=0, quiet=True)
    failures = [failure for outcome in outcomes.values() for failure in outcome.failures]
    assert not failures, "\n".join(failures[:10])
    assert all(outcome.counts.total() == FILES for outcome in outcomes.values())
    assert all(outcome.counts["refused"] for outcome in outcomes.values())


def write(folder: Path) -> Path:
    (folder / "a").write_bytes(bytes(1000))
    return folder / "a"


def raises(error: Exception) -> object:
    raise error


@pytest.mark.parametrize(
    ("read", "what"),
    [
        (lambda path: raises(ValueError("unforeseen")), "unforeseen"),
        (lambda path: raises(WrongContent("the shape")), "the shape"),
        (lambda path: raises(UserError("damaged")), "names no file"),
        (lambda path: path.read_bytes(), "other content"),
    ],
)
def test_wrong_behavior_counts_as_a_failure(tmp_path: Path, read: object, what: str) -> None:
    def once_good(path: Path) -> object:
        return b"" if "good" in path.parts else read(path)  # type: ignore[operator]

    case = Case(Subject("a", write, once_good, checksums=True), tmp_path)
    outcomes = [case.run(0, number) for number in range(5)]
    assert {outcome for outcome, _ in outcomes} == {"FAILED"}
    assert all(what in told for _, told in outcomes)


def test_damage_is_reproducible(tmp_path: Path) -> None:
    seen: list[bytes] = []
    case = Case(Subject("a", write, lambda path: seen.append(path.read_bytes())), tmp_path)
    for number in (1, 2, 1):
        case.run(7, number)
    assert seen[1] == seen[3] != seen[2]
