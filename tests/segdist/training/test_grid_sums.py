"""Sums on a grid: exact, hence independent of order; accurate; overflows and bad terms are distinguished."""

import random
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segdist.ranks.launchers import RankEnvironment
from segdist.ranks.process_group import Ranks
from segdist.training import grid_sums
from segdist.training.grid_sums import DIGITS, FINEST, HEADROOM, GridSums, power_of_two

ALONE = Ranks(RankEnvironment("single"), torch.device("cpu"))


@pytest.fixture(scope="module", autouse=True, params=[(grid_sums.SMALL, grid_sums.BLOCK), (0, 16), (10, 16)])
def small_and_block(request: pytest.FixtureRequest) -> Iterator[None]:
    """All tensors packed; each on its own, in blocks; some of them packed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid_sums, "SMALL", request.param[0])
        patch.setattr(grid_sums, "BLOCK", request.param[1])
        yield


def terms(seed: int, count: int = 8, spread: float = 3.0) -> list[list[torch.Tensor]]:
    """Terms of two tensors with values of many magnitudes, like gradients."""
    generator = torch.Generator().manual_seed(seed)

    def tensor(*shape: int, scale: float) -> torch.Tensor:
        sizes = torch.exp(spread * torch.randn(shape, generator=generator))
        return scale * sizes * torch.randn(shape, generator=generator)

    return [[tensor(5, 7, scale=1e-3), tensor(3, scale=1e4)] for _ in range(count)]


def summed(
    values: list[list[torch.Tensor]], sums: GridSums | None = None, dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    """The sums, repeated on coarser grids if a term overflows."""
    sums = sums or GridSums(values[0], len(values), torch.device("cpu"))
    while True:
        sums.start()
        for term in values:
            sums.add([tensor.clone() for tensor in term])
        sums.reduce(ALONE)
        overflowed = bool(sums.overflowed())
        sums.learn()
        if not overflowed:
            break
    targets = [torch.empty_like(tensor, dtype=dtype) for tensor in values[0]]
    sums.write(targets)
    return targets


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 40), st.floats(0, 12))
def test_any_order_and_any_split_give_the_same_bits(seed: int, count: int, spread: float) -> None:
    values = terms(seed, count, spread)
    # In float64, so that no final rounding hides a difference.
    expected = summed(values, dtype=torch.float64)
    shuffled = random.Random(seed).sample(values, len(values))
    assert all(torch.equal(a, b) for a, b in zip(summed(shuffled, dtype=torch.float64), expected, strict=True))


def test_a_float32_sum_depends_on_the_order() -> None:
    values = terms(1)
    forwards, backwards = torch.zeros(5, 7), torch.zeros(5, 7)
    for one, other in zip(values, reversed(values), strict=True):
        forwards += one[0]
        backwards += other[0]
    assert not torch.equal(forwards, backwards)


def pairwise(items: list[torch.Tensor]) -> torch.Tensor:
    half = len(items) // 2
    return items[0] if len(items) == 1 else pairwise(items[:half]) + pairwise(items[half:])


def errors(found: torch.Tensor, exact: list[Fraction]) -> list[Fraction]:
    return [abs(Fraction(value) - true) for value, true in zip(found.flatten().tolist(), exact, strict=True)]


@pytest.mark.parametrize("count", [2, 4, 8, 13, 64])
def test_the_sum_is_as_accurate_as_a_pairwise_float32_sum(count: int) -> None:
    values = terms(count, count)
    for index, found in enumerate(summed(values)):
        items = [term[index] for term in values]
        columns = zip(*(item.flatten().tolist() for item in items), strict=True)
        exact = [sum(map(Fraction, column), start=Fraction(0)) for column in columns]
        largest = max(float(item.abs().max()) for item in items)
        ours = errors(found, exact)
        # For two terms the float32 sum is correctly rounded; ours equals it up to the grid.
        assert max(ours) <= Fraction(1.0001) * max(errors(pairwise(items), exact))
        # The module's bound, plus the final rounding to float32.
        bound = count * 2.0 ** (HEADROOM + (count - 1).bit_length() + 2 - DIGITS - 1) * largest
        assert all(error <= bound + 2.0**-24 * abs(true) for error, true in zip(ours, exact, strict=True))


def test_ties_are_broken_term_by_term() -> None:
    """Half a grid unit rounds to even in each term, whatever the sum so far."""
    sums = GridSums([torch.zeros(1)], 2, torch.device("cpu"))
    sums.exponents = torch.tensor([0], dtype=torch.int32)
    unit = 2.0 ** (HEADROOM + 1 + 1 - DIGITS)
    for order, expected in (([1.5, 1.5], 4), ([0.5, 0.5], 0), ([2.5, 0.5], 2), ([0.5, 2.5], 2), ([1.0, 0.5], 1)):
        sums.start()
        for value in order:
            sums.add([torch.tensor([value * unit])])
        sums.reduce(ALONE)
        found = [torch.zeros(1, dtype=torch.float64)]
        sums.write(found)
        assert found[0].item() == expected * unit


def test_rounding_to_minus_zero_gives_plus_zero() -> None:
    values = [[torch.tensor([1.0, -1e-30])], [torch.tensor([1.0, -1e-30])]]
    assert summed(values)[0].signbit().tolist() == [False, False]


def test_exponents_rise_at_once_and_fall_one_bit_at_a_time() -> None:
    sums = GridSums([torch.zeros(1)], 1, torch.device("cpu"))
    seen = []
    for value in (1.0, 1000.0, 1.0, 1e-20, 0.0, 0.0, 1e-20):
        summed([[torch.tensor([value])]], sums)
        seen.append(int(sums.exponents))
    assert seen == [1, 10, 9, 8, 8, 8, 7]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_terms_do_not_count_as_overflow_and_keep_the_grid(bad: float) -> None:
    sums = GridSums([torch.zeros(2)], 2, torch.device("cpu"))
    summed([[torch.tensor([1.0, 2.0])], [torch.tensor([1.0, 2.0])]], sums)
    before = sums.exponents.clone()
    sums.start()
    sums.add([torch.tensor([1.0, bad])])
    sums.add([torch.tensor([1e30, 1.0])])
    sums.reduce(ALONE)
    sums.learn()
    assert (bool(sums.bad()), bool(sums.overflowed())) == (True, False)
    assert torch.equal(sums.exponents, before)


def test_a_term_beyond_the_headroom_is_detected_and_one_below_accepted() -> None:
    sums = GridSums([torch.zeros(1)], 4, torch.device("cpu"))
    summed([[torch.tensor([1.0])]], sums)
    for factor, expected in ((1.0, False), (2.0, True)):
        sums.start()
        sums.add([torch.tensor([factor * 2.0 ** (1 + HEADROOM)])])
        sums.reduce(ALONE)
        assert bool(sums.overflowed()) is expected


def test_a_tensor_without_terms_is_recognized() -> None:
    like = [torch.zeros(2), torch.zeros(3)]
    sums = GridSums(like, 2, torch.device("cpu"))
    term: list[Any] = [torch.ones(2), None]
    sums.start()
    for _ in range(2):
        sums.add([None if tensor is None else tensor.clone() for tensor in term])
    sums.reduce(ALONE)
    assert sums.touched().tolist() == [True, False]


def test_packs_and_blocks_leave_the_bits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    values = terms(3)
    found = summed(values, dtype=torch.float64)
    monkeypatch.setattr(grid_sums, "SMALL", 0)
    monkeypatch.setattr(grid_sums, "BLOCK", 1000)
    assert all(torch.equal(a, b) for a, b in zip(found, summed(values, dtype=torch.float64), strict=True))


def test_a_term_that_lacks_a_small_tensor_adds_nothing_to_it() -> None:
    values: list[list[Any]] = [[torch.ones(50), torch.full((3,), 2.0)], [torch.ones(50), None]]
    sums = GridSums(values[0], 2, torch.device("cpu"))
    for _ in range(2):  # the first pass measures their magnitudes
        sums.start()
        for term in values:
            sums.add([None if tensor is None else tensor.clone() for tensor in term])
        sums.reduce(ALONE)
        sums.learn()
    found = [torch.zeros(50), torch.zeros(3)]
    sums.write(found)
    assert [tensor.tolist() for tensor in found] == [[2.0] * 50, [2.0] * 3]


def test_powers_of_two_are_exact() -> None:
    exponents = torch.arange(-126, 128, dtype=torch.int32)
    assert power_of_two(exponents).tolist() == [2.0**e for e in range(-126, 128)]
    assert FINEST >= -126


def test_non_contiguous_memory_layouts_are_kept() -> None:
    values = [[torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)] for _ in range(3)]
    found = summed(values)[0]
    torch.testing.assert_close(found, torch.stack([term[0] for term in values]).sum(dim=0))
    assert found.is_contiguous(memory_format=torch.channels_last)
