"""Hashes and keyed permutations."""

import ast

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from segdist.core.keyed import Purpose, hash64, permute, uniform
from tests.support.programs import ROOT


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 3000), key=st.integers(0, 2**63))
def test_a_keyed_permutation_is_a_permutation(size: int, key: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


def test_permuting_one_position_agrees_with_permuting_all() -> None:
    every = permute(np.arange(1000), 1000, 5)
    assert [int(permute(i, 1000, 5)) for i in (0, 17, 999)] == every[[0, 17, 999]].tolist()


def test_sizes_and_keys_may_differ_per_element() -> None:
    sizes, keys = np.array([10, 1, 7]), np.array([3, 4, 5])
    together = permute(np.array([9, 0, 2]), sizes, keys)
    assert together.tolist() == [int(permute(9, 10, 3)), 0, int(permute(2, 7, 5))]


def test_every_position_is_equally_likely_to_map_anywhere() -> None:
    size, keys = 6, 30_000
    counts = np.zeros((size, size))
    for position in range(size):
        moved = permute(np.full(keys, position), size, hash64(np.arange(keys)))
        counts[position] = np.bincount(moved.astype(int), minlength=size)
    chi_square = ((counts - keys / size) ** 2 / (keys / size)).sum()
    assert chi_square < 60  # 25 degrees of freedom: 52.6 at one in a thousand


def test_large_sizes_are_permuted_without_a_table() -> None:
    positions = np.arange(100_000) * 1000
    moved = permute(positions, 10**12, 1)
    assert len(np.unique(moved)) == len(positions)
    assert moved.max() < 10**12
    assert 0.48e12 < moved.mean() < 0.52e12


def test_uniform_numbers_fill_the_unit_interval() -> None:
    values = uniform(7, np.arange(50_000))
    assert 0 <= values.min() <= values.max() < 1
    assert np.abs(np.histogram(values, 10, (0, 1))[0] - 5000).max() < 300


def test_the_order_of_key_parts_matters() -> None:
    assert hash64(1, 2) != hash64(2, 1)


def test_every_kind_of_draw_has_its_own_key() -> None:
    assert len(Purpose.__members__) == len(set(Purpose))  # an alias would not count as a separate member
    assert len({int(hash64(7, purpose, 3)) for purpose in Purpose}) == len(Purpose)


def test_every_draw_is_keyed_by_a_purpose() -> None:
    """Every key is (seed, purpose, …), because two callers could pick the same bare number."""
    calls = [
        (path, node.args)
        for room in ("segdist", "shards")
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("generator", "hash64", "uniform")
        if path.name != "keyed.py"
    ]
    assert len(calls) > 10
    wrong = [str(path) for path, args in calls if not _names_a_purpose(args)]
    assert not wrong


def _names_a_purpose(args: list[ast.expr]) -> bool:
    if any(isinstance(arg, ast.Starred) for arg in args[:1]):
        return True  # the key was built elsewhere
    return len(args) > 1 and ("purpose" in ast.unparse(args[1]).lower())
