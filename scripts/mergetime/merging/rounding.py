"""What rounding to a checkpoint's dtype adds to its task vector, told from what training has added.

A full checkpoint into which an adapter was merged is the base plus an update of low rank, rounded. Its task vector is
that update plus noise, at most half a unit in the last place of each weight; the noise has full rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_MARGIN = 1.1
"""How far above its bound for large matrices the largest singular value of noise may be."""


@dataclass(frozen=True)
class Rounding:
    """The noise of a matrix: independent entries, uniform over a unit in the last place, which differs by entry.

    Attributes:
        row: the largest expected squared norm of a row.
        column: the largest expected squared norm of a column.
        energy: the expected squared norm of the matrix.
        variance: of the squared norm.
        shape: of the matrix.
    """

    row: float
    column: float
    energy: float
    variance: float
    shape: tuple[int, int]

    @property
    def largest(self) -> float:
        """About what the largest singular value is no larger than: Bandeira and van Handel 2016 (arXiv 1408.6185)."""
        return _MARGIN * (math.sqrt(self.row) + math.sqrt(self.column))

    def rank(self, values: torch.Tensor) -> int:
        """How many of the falling singular values of a task vector rounding does not explain.

        All of them, where none is larger than rounding makes, or where those that are not hold more than rounding has
        put there: then training has changed the matrix in all directions.
        """
        import torch

        above = int(torch.count_nonzero(values > self.largest))
        (m, n), rest = self.shape, float(values[above:].square().sum())
        # Of noise, what lies in the directions that training has changed is with these.
        beside = (m - above) * (n - above) / (m * n)
        explained = 1.02 * beside * self.energy + 4 * math.sqrt(self.variance)
        return above if above and rest <= explained else len(values)


def of(tensor: Any) -> Rounding:
    """The noise of weights [m, n] that were rounded to their dtype, or are computed in fp32 as rows are asked for."""
    import torch

    weights: torch.Tensor = tensor[:]
    precision = torch.finfo(weights.dtype)
    # Mantissas are below 1: a unit in the last place is eps of half the power of two. Zeros have none to speak of.
    _, exponents = torch.frexp(weights.float())
    units = torch.ldexp(torch.full_like(weights, precision.eps / 2, dtype=torch.float64), exponents)
    squares = torch.where(weights == 0, 0.0, units.square_().div_(12))
    row, column = (float(squares.sum(dim=dim).max()) for dim in (1, 0))
    # Of an entry that is uniform over [-1/2, 1/2], the square has the mean 1/12 and the variance 1/180.
    variance = float(squares.square().sum()) * 144 / 180
    return Rounding(row, column, float(squares.sum()), variance, (weights.shape[0], weights.shape[1]))


def total(parts: Sequence[Rounding]) -> Rounding | None:
    """The noise of a sum; None where no part has any."""
    if not parts:
        return None
    # The square of a sum of independent errors has twice the square of its mean as variance, or less.
    energy = sum(part.energy for part in parts)
    variance = 2.5 * len(parts) * sum(part.variance for part in parts)
    return Rounding(
        sum(part.row for part in parts), sum(part.column for part in parts), energy, variance, parts[0].shape
    )
