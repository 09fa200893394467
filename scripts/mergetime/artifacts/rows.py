"""Weights that are computed a few rows at a time, since the whole matrix need not be in memory.

They are those that adapters make of the base's, and those of an expert with other rows than the base.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_ROWS = 1024
"""Rows whose norms are taken at a time."""


@dataclass(frozen=True)
class Replaced:
    """A table in fp32 with other rows in some places, computed for the rows that are asked for.

    Attributes:
        base: the table [rows, columns], in any floating-point dtype.
        places: of the rows that are replaced [some].
        rows: what takes their place [some, columns], in fp32.
    """

    base: torch.Tensor
    places: torch.Tensor
    rows: torch.Tensor

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, rows: slice) -> torch.Tensor:
        import torch

        source = torch.full((len(self.base),), -1).index_copy(0, self.places, torch.arange(len(self.places)))[rows]
        replaced = source >= 0
        made = self.base[rows].to(torch.float32, copy=True)
        made[replaced] = self.rows[source[replaced]]
        return made


@dataclass(frozen=True)
class Rows:
    """The weights (W + L R) * scale in fp32, computed for the rows that are asked for.

    Of a bank of matrices, all three begin with a dimension more, and its rows are the matrices.

    Attributes:
        base: W [rows, columns], in any floating-point dtype, or rows that are computed themselves.
        left: L [rows, rank], with the scaling in it.
        right: R [rank, columns].
        scale: DoRA's, [rows, 1] or [1, columns]; None without DoRA.
    """

    base: torch.Tensor | Replaced | Filled
    left: torch.Tensor
    right: torch.Tensor
    scale: torch.Tensor | None = None

    def __getitem__(self, rows: slice) -> torch.Tensor:
        right = self.right if self.right.dim() == 2 else self.right[rows]
        made = self.base[rows].float() + self.left[rows] @ right
        if self.scale is None:
            return made
        return made * (self.scale if len(self.scale) == 1 else self.scale[rows])


@dataclass(frozen=True)
class Filled:
    """The weights of an expert that lacks the last rows of the base, with these as they are in the base.

    Attributes:
        weights: the expert's.
        base: the base's, of more rows.
    """

    weights: torch.Tensor
    base: torch.Tensor

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, rows: slice) -> torch.Tensor:
        import torch

        first, end, step = rows.indices(len(self.base))
        held = len(self.weights)
        # The first row of the base's that the slice takes.
        later = first + max(0, -((first - held) // step)) * step
        parts = [part for part in (self.weights[first:end:step], self.base[later:end:step]) if len(part)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def fitted(weights: torch.Tensor, base: torch.Tensor) -> torch.Tensor | Filled:
    """An expert's weights with the rows of the base: what is beyond them is cut off, what is absent is the base's."""
    if weights.shape == base.shape:
        return weights
    if len(weights) > len(base):
        return weights[: len(base)]
    filled = Filled(weights, base)
    # A bias is added to as a whole.
    return filled if base.dim() > 1 else filled[:]


def resized(tensor: torch.Tensor, size: int, axis: int) -> torch.Tensor:
    """A tensor cut to a size along an axis, or filled up to it with zeros."""
    import torch

    missing = size - tensor.shape[axis]
    if missing <= 0:
        return tensor if missing == 0 else tensor.narrow(axis, 0, size)
    shape = list(tensor.shape)
    shape[axis] = missing
    return torch.cat([tensor, torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)], dim=axis)


def scaled(weights: Rows, magnitudes: torch.Tensor, *, turned: bool) -> Rows:
    """The weights with DoRA's magnitudes m: each output's inputs are brought to the norm m (Liu et al. 2024).

    PEFT takes the norm of W + L R over the inputs of each output, which are a row, or a column where the weight is
    ``turned``, [inputs, outputs].
    """
    import torch

    count = len(weights.base)
    squares = []
    for first in range(0, count, _ROWS):
        squares.append(weights[first : first + _ROWS].double().square().sum(dim=0 if turned else 1))
    norms = (torch.stack(squares).sum(dim=0) if turned else torch.cat(squares)).sqrt()
    scale = (magnitudes.double() / norms).float()
    return Rows(weights.base, weights.left, weights.right, scale[None, :] if turned else scale[:, None])
