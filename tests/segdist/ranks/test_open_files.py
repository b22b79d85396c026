"""The open-file limit, checked before ranks connect."""

import pytest

from segdist.core.errors import UserError
from segdist.ranks import open_files
from segdist.ranks.open_files import allow_connections


class Limits:
    """Fake system limits."""

    RLIMIT_NOFILE, RLIM_INFINITY = 7, -1

    def __init__(self, soft: int, hard: int) -> None:
        self.limit = (soft, hard)

    def getrlimit(self, what: int) -> tuple[int, int]:
        assert what == self.RLIMIT_NOFILE
        return self.limit

    def setrlimit(self, what: int, limit: tuple[int, int]) -> None:
        assert what == self.RLIMIT_NOFILE
        self.limit = limit


@pytest.mark.parametrize(
    ("world_size", "soft", "hard", "after"),
    [
        (8, 1024, 4096, (1024, 4096)),
        (1000, 1024, 4096, (3256, 4096)),
        (1000, 1024, -1, (3256, -1)),
        (8000, -1, -1, (-1, -1)),
    ],
)
def test_the_limit_is_raised_as_far_as_needed(
    world_size: int, soft: int, hard: int, after: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(soft, hard)
    monkeypatch.setattr(open_files, "limits", limits)
    allow_connections(world_size)
    assert limits.limit == after


def test_more_ranks_than_the_limit_allows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files, "limits", Limits(1024, 4096))
    with pytest.raises(UserError, match=r"8000 ranks need up to 24256 open files.*limit here is 4096: raise it"):
        allow_connections(8000)


def test_a_system_without_such_a_limit_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files, "limits", None)
    allow_connections(10**6)
