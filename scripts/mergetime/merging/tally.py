"""What is counted while tensors are merged, for the summary of a merge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergetime.artifacts.files import is_finite
from mergetime.core.errors import UserError
from mergetime.merging.pool import OpenPool, TensorStack

if TYPE_CHECKING:
    import torch


@dataclass
class Tally:
    """Sums over a tensor, or over all."""

    entries: int = 0
    squares: list[float] = field(default_factory=list)
    merged: float = 0.0
    error: float = 0.0
    counted: int = 0
    zeros: int = 0
    conflicts: int = 0

    def add(self, other: Tally) -> None:
        """Take in another tally."""
        if other.squares:
            before = self.squares or [0.0] * len(other.squares)
            self.squares = [a + b for a, b in zip(before, other.squares, strict=True)]
        for name in ("entries", "merged", "error", "counted", "zeros", "conflicts"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def summary(self, experts: Sequence[str]) -> dict[str, Any]:
        """What people read of it.

        Norms of the experts' and the merged updates, entries, the relative error of what was written, and where the
        merge went entry by entry the share of exact zeros and that of entries with opposite signs.
        """
        summary: dict[str, Any] = {
            "expert_norms": {name: math.sqrt(square) for name, square in zip(experts, self.squares, strict=True)},
            "merged_norm": math.sqrt(self.merged),
            "entries": self.entries,
            "relative_error": math.sqrt(self.error / self.merged) if self.merged else 0.0,
        }
        if self.counted:
            summary |= {"sparsity": self.zeros / self.counted, "sign_conflicts": self.conflicts / self.counted}
        return summary


def check_base(pool: OpenPool, name: str) -> None:
    """Refuse a base whose tensor is not finite, where there is a base.

    Raises:
        UserError: naming the base and the tensor.
    """
    if pool.base and name in pool.base.shapes and not is_finite(pool.base.tensor(name)):
        raise UserError(f"{pool.base}: {name} holds NaN or infinite values; fetch it again")


def add_norms(tally: Tally, stack: TensorStack, block: torch.Tensor) -> None:
    """Add a block's squares to the tally, and refuse values that are not finite."""
    import torch

    # By rows, which are summed in float64: a sum of hundreds of thousands of squares in fp32 is 1e-6 off.
    norms = torch.linalg.vector_norm(block, dim=-1).double()
    squares = norms.square().reshape(len(block), -1).sum(dim=1).tolist()
    for place, square in enumerate(squares):
        if not math.isfinite(square) and not is_finite(block[place]):
            if stack.tensors:
                check_base(stack.pool, stack.name)
            raise UserError(
                f"expert {stack.pool.names[place]}: {stack.name} holds NaN or infinite values; its training diverged"
            )
    tally.squares = [a + b for a, b in zip(tally.squares or [0.0] * len(squares), squares, strict=True)]


def count_entries(tally: Tally, stack: torch.Tensor, merged: torch.Tensor) -> None:
    """Count a block's zeros, and the entries in which experts have opposite signs."""
    tally.counted += merged.numel()
    tally.zeros += _how_many(merged, 0.0, equal=True)
    # Opposite signs: the largest entry times the smallest is negative.
    tally.conflicts += _how_many(stack.amax(dim=0) * stack.amin(dim=0), 0.0, equal=False)


def _how_many(tensor: torch.Tensor, value: float, *, equal: bool) -> int:
    """How many entries equal the value, or are below it; on the CPU by NumPy, which counts ten times as fast."""
    import numpy as np

    if tensor.device.type != "cpu":
        return int(((tensor == value) if equal else (tensor < value)).sum())
    entries = tensor.numpy()
    return int(np.count_nonzero(entries == value if equal else entries < value))


def square_norm(tensor: torch.Tensor) -> float:
    """The squared norm of a tensor."""
    import torch

    return float(torch.linalg.vector_norm(tensor)) ** 2
