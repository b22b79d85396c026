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

from collections.abc import Sequence

import torch

from segdist.ranks.process_group import Ranks

HEADROOM = 12
"""Bits by which a term may exceed the largest one so far."""
DIGITS = 53
"""Bits of a float64's significand."""
FINEST = -120
"""Smallest exponent of a grid: its inverse, by which float32 terms are multiplied, must fit into a float32."""
BLOCK = 1 << 16
"""Values that a CPU processes at once, since several operations pass over them: 256 kB, and 512 kB of sums."""
SMALL = 1 << 12
"""Tensors with fewer values are packed into one, since a model has many of them and each operation has a fixed cost."""
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
        self._large = [index for index, size in enumerate(sizes) if size >= SMALL]
        self._small = [index for index, size in enumerate(sizes) if size < SMALL]
        rows = [index for index in self._small for _ in range(sizes[index])]
        self._pack = torch.zeros(len(rows), device=device)
        self._packed = self._unpacked(self._pack)
        self._pack_rows = torch.tensor(rows, dtype=torch.int64, device=device)
        self._flat = torch.zeros(sum(sizes) + len(like) + 2, dtype=torch.float64, device=device)
        parts: tuple[torch.Tensor, ...] = self._flat.split(
            [*(sizes[index] for index in self._large), len(self._pack), len(like), 1, 1]
        )
        *large, self._pack_sums, self._touched, self._overflows, self._bad = parts
        self._block = BLOCK if device.type == "cpu" else max(sum(sizes), 1)
        self._sums = [part.split(self._block) for part in large]
        self._maxima = torch.zeros(len(like), device=device)

    def start(self) -> None:
        """Begin new sums, on the grids that follow from `exponents`."""
        # +0.0, because rounding yields -0.0, and (+0.0) + (-0.0) = +0.0 whichever rank has the first term.
        self._flat.zero_()
        self._maxima.zero_()
        headroom = HEADROOM + (self.terms - 1).bit_length() + 1 - DIGITS
        self._grid = (self.exponents + headroom).clamp(FINEST, -FINEST)
        self._to_units = power_of_two(-self._grid)
        self._limits = power_of_two((self._grid - headroom + HEADROOM).clamp(max=127))

    def add(self, term: Sequence[torch.Tensor | None]) -> None:
        """Add a term. Its tensors are overwritten."""
        scales, rows, extremes = self._to_units.unbind(), [], []
        for index, sums in zip(self._large, self._sums, strict=True):
            tensor = term[index]
            if tensor is not None:
                for values, total in zip(self._blocks(index, tensor), sums, strict=True):
                    rows += [index, index]
                    extremes.append(torch.stack(torch.aminmax(values)))
                    total += values.mul_(scales[index]).round_()
        self._fill_pack(term)
        self._pack_sums += (self._pack * self._to_units[self._pack_rows]).round_()
        sizes = torch.cat([*extremes, self._pack]).abs().nan_to_num(torch.inf, torch.inf)
        of_tensor = torch.cat([torch.tensor(rows, dtype=torch.int64, device=sizes.device), self._pack_rows])
        maxima = torch.zeros_like(self._maxima).scatter_reduce_(0, of_tensor, sizes, "amax")
        finite = maxima.isfinite()
        self._touched[[index for index, tensor in enumerate(term) if tensor is not None]] += 1
        self._overflows += (finite & (maxima > self._limits)).any()
        self._bad += (~finite).any()
        self._maxima = torch.maximum(self._maxima, torch.where(finite, maxima, 0.0))

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
        for index, sums in zip(self._large, self._sums, strict=True):
            for values, total in zip(self._blocks(index, targets[index]), sums, strict=True):
                values.copy_(total).mul_(units[index])
        for index, part in zip(self._small, self._unpacked(self._pack_sums), strict=True):
            targets[index].copy_(part).mul_(units[index])

    def _fill_pack(self, term: Sequence[torch.Tensor | None]) -> None:
        """Copy the small tensors of a term into the pack, and 0 for those that it lacks."""
        for index, part in zip(self._small, self._packed, strict=True):
            tensor = term[index]
            if tensor is None:
                part.zero_()
            else:
                part.copy_(tensor)

    def _unpacked(self, pack: torch.Tensor) -> list[torch.Tensor]:
        """Views of the small tensors in a pack."""
        shapes = [self._shapes[index] for index in self._small]
        parts = pack.split([shape.numel() for shape, _ in shapes])
        return [part.as_strided(shape, strides) for part, (shape, strides) in zip(parts, shapes, strict=True)]

    def _blocks(self, index: int, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The values of a tensor in memory order, in blocks."""
        shape, strides = self._shapes[index]
        if tensor.stride() != strides:  # a gradient's may differ from its parameter's
            tensor = tensor.new_empty_strided(shape, strides).copy_(tensor)
        blocks: tuple[torch.Tensor, ...] = tensor.as_strided((tensor.numel(),), (1,)).split(self._block)
        return blocks


def power_of_two(exponents: torch.Tensor) -> torch.Tensor:
    """2^e in float32, exactly, for int32 exponents from -126 to 127: written into the bits."""
    return ((exponents + 127) << 23).view(torch.float32)


def _strides(tensor: torch.Tensor) -> tuple[int, ...]:
    """The strides if the tensor has no gaps in memory (contiguous, NHWC), otherwise those of a contiguous tensor."""
    return torch.empty_like(tensor).stride()
