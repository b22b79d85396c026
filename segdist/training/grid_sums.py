"""Sums that have the same bits in any order, because every term is rounded to a grid before it is added.

The grid of a tensor is a power of two, 2^e. A term becomes a whole number of grid units, and all terms together stay
below 2^53 units. So every partial sum is a whole number below 2^53, which float64 holds exactly: no addition rounds,
and neither the order nor the number of ranks matters. Precision is lost only once, when a term is rounded to the grid.

The arithmetic, for G terms: let k be the exponent of the largest recent term (|term| < 2^k). With a HEADROOM of h bits
for growing terms, terms up to 2^(k+h) are accepted, and G of them stay below 2^53 units of 2^e for

    e = k + h + ceil(log2 G) + 1 - 53.

A term moves by at most half a unit, so a sum moves by at most G 2^(e-1): for G = 8 and h = 12 that is 2^-34 of the
largest term, 6e-11 (a pairwise sum in float32: ceil(log2 G) 2^-24, 2e-7).

A term beyond 2^(k+h) is an overflow. Overflows are counted in the same sum, and the sum is repeated on a coarser grid.
Infinite and NaN terms are counted separately, because a coarser grid wouldn't help.
"""

from collections.abc import Iterator, Sequence

import torch

from segdist.ranks.process_group import Ranks

HEADROOM = 12
"""Bits by which a term may exceed the largest one so far."""
DIGITS = 53
"""Bits of a float64's significand."""
FINEST = -120
"""Smallest exponent of a grid: its inverse, by which float32 terms are multiplied, must fit into a float32."""
BLOCK = 1 << 15
"""Values that a CPU processes at once: 128 kB, and 256 kB of sums."""
UNKNOWN = -(2**20)
"""Exponent of the largest term before the first one."""


class GridSums:
    """Sums of G terms over ranks. A term is a list of tensors or None, and each tensor has its own grid.

    Args:
        like: tensors of float32 with the shapes and strides of a term's.
        terms: G, over all ranks.
    """

    def __init__(self, like: Sequence[torch.Tensor], terms: int, device: torch.device) -> None:
        self.terms = terms
        self.exponents = torch.full((len(like),), UNKNOWN, dtype=torch.int32, device=device)
        """k of each tensor; kept in checkpoints, since the bits of later sums depend on it."""
        self._shapes = [(tensor.shape, _strides(tensor)) for tensor in like]
        sizes = [tensor.numel() for tensor in like]
        counts = len(like) + 2
        self._flat = torch.zeros(sum(sizes) + counts, dtype=torch.float64, device=device)
        *values, tail = self._flat.split([*sizes, counts])
        self._block = BLOCK if device.type == "cpu" else max(sum(sizes), 1)
        self._sums = [value.split(self._block) for value in values]
        parts: tuple[torch.Tensor, ...] = tail.split([len(like), 1, 1])
        self._touched, self._overflows, self._bad = parts
        self._maxima = torch.zeros(len(like), device=device)

    def start(self) -> None:
        """Begin new sums, on the grids that follow from `exponents`."""
        # +0.0, because rounding yields -0.0, and (+0.0) + (-0.0) = +0.0 whichever rank has the first term.
        self._flat.zero_()
        self._maxima.zero_()
        headroom = HEADROOM + (self.terms - 1).bit_length() + 1 - DIGITS
        self._grid = (self.exponents + headroom).clamp(FINEST, -FINEST)
        self._to_units = power_of_two(-self._grid).unbind()
        self._limits = power_of_two((self._grid - headroom + HEADROOM).clamp(max=127))

    def add(self, term: Sequence[torch.Tensor | None]) -> None:
        """Add a term. Its tensors are overwritten."""
        present = [index for index, tensor in enumerate(term) if tensor is not None]
        blocks = {index: self._blocks(index, tensor) for index, tensor in enumerate(term) if tensor is not None}
        rows = [index for index in present for _ in blocks[index]]
        values = [block for index in present for block in blocks[index]]
        sums = [block for index in present for block in self._sums[index]]
        extremes = []
        for group in self._groups(values):
            # `_foreach_norm` takes ten times as long on a CPU for its infinity norm.
            extremes += [torch.aminmax(block) for block in values[group]]
            torch._foreach_mul_(values[group], [self._to_units[row] for row in rows[group]])
            torch._foreach_round_(values[group])
            torch._foreach_add_(sums[group], values[group])
        lowest, highest = (torch.stack(found) for found in zip(*extremes, strict=True))
        maxima = torch.maximum(highest, -lowest)
        finite, of_block = maxima.isfinite(), torch.tensor(rows, device=maxima.device)
        self._touched[present] += 1
        self._overflows += (finite & (maxima > self._limits[of_block])).any()
        self._bad += (~finite).any()
        self._maxima.scatter_reduce_(0, of_block, torch.where(finite, maxima, 0.0), "amax")

    def reduce(self, ranks: Ranks) -> None:
        """Sum over the ranks. Collective."""
        ranks.sum_(self._flat)
        ranks.max_(self._maxima)

    def overflowed(self) -> torch.Tensor:
        """bool scalar: a term was too large for its grid, and none was infinite or NaN. Valid after `reduce`."""
        return (self._overflows[0] > 0) & ~self.bad()

    def bad(self) -> torch.Tensor:
        """bool scalar: a term was infinite or NaN. Valid after `reduce`."""
        return self._bad[0] > 0

    def touched(self) -> torch.Tensor:
        """bool (tensors,): some term had the tensor. Valid after `reduce`."""
        return self._touched > 0

    def learn(self) -> None:
        """Adapt the exponents to the largest terms of these sums, unless there were bad terms.

        An exponent rises at once and falls by at most one bit. If all terms were 0 (nothing was labeled), it stays.
        """
        seen = torch.frexp(self._maxima).exponent
        next_ones = torch.maximum(seen, self.exponents - 1)
        keep = (self._maxima == 0) | self.bad()
        self.exponents = torch.where(keep, self.exponents, next_ones).to(torch.int32)

    def write(self, targets: Sequence[torch.Tensor]) -> None:
        """Write the sums to float tensors of the terms' shapes, rounded once to their dtype. Valid after `reduce`.

        Raises:
            ValueError: the strides of a target differ from those of `like`.
        """
        if [target.stride() for target in targets] != [strides for _, strides in self._shapes]:
            raise ValueError("strides that differ from those of the terms")
        units = power_of_two(self._grid).unbind()
        blocks = [self._blocks(index, target) for index, target in enumerate(targets)]
        rows = [index for index, parts in enumerate(blocks) for _ in parts]
        values, sums = sum(blocks, ()), sum(self._sums, ())
        for group in self._groups(values):
            torch._foreach_copy_(values[group], sums[group])
            torch._foreach_mul_(values[group], [units[row] for row in rows[group]])

    def _blocks(self, index: int, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The values of a tensor in memory order, in blocks."""
        shape, strides = self._shapes[index]
        if tensor.stride() != strides:  # a gradient's may differ from its parameter's
            tensor = tensor.new_empty_strided(shape, strides).copy_(tensor)
        blocks: tuple[torch.Tensor, ...] = tensor.as_strided((tensor.numel(),), (1,)).split(self._block)
        return blocks

    def _groups(self, blocks: Sequence[torch.Tensor]) -> Iterator[slice]:
        """Groups of blocks that fit into a core's cache together, since several operations pass over each."""
        first, size = 0, 0
        for index, block in enumerate(blocks):
            if size and size + block.numel() > self._block:
                yield slice(first, index)
                first, size = index, 0
            size += block.numel()
        if size:
            yield slice(first, len(blocks))


def power_of_two(exponents: torch.Tensor) -> torch.Tensor:
    """2^e in float32, exactly, for int32 exponents from -126 to 127: written into the bits."""
    return ((exponents + 127) << 23).view(torch.float32)


def _strides(tensor: torch.Tensor) -> tuple[int, ...]:
    """The strides if the tensor has no gaps in memory (contiguous, NHWC), otherwise those of a contiguous tensor."""
    return torch.empty_like(tensor).stride()
