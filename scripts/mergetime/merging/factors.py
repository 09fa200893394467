"""Algebra of low-rank updates L R, kept in factors: what costs min(m, n)^3 on matrices costs the rank cubed here.

Lefts are [m, r], rights [r, n]. Decompositions are in float64, whatever the factors' dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from mergetime.merging.rounding import Rounding

RANK_TOLERANCE = 1e-11
"""Singular values below this share of the largest are rounding: the updates themselves are exact to 1e-7."""


def svd(matrix: torch.Tensor, rounding: Rounding | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Thin SVD at the true rank r: U [m, r], S [r] falling, V^T [r, n]; r is 0 for a matrix of zeros.

    Directions that are no more than ``rounding`` do not count to the rank.
    """
    import torch

    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((s > RANK_TOLERANCE * s[0]).sum()) if len(s) else 0
    if rounding is not None:
        rank = min(rank, rounding.rank(s))
    return u[:, :rank], s[:rank], vh[:rank]


def rotated(
    lefts: Sequence[torch.Tensor], rights: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The updates in the basis of their stacked factors: P [m, p], cores [experts, p, q], Q [q, n].

    Update i is P cores[i] Q; P has orthonormal columns, Q orthonormal rows, p and q are at most the sum of the ranks.
    """
    import torch

    columns, upper = torch.linalg.qr(torch.cat([left.double() for left in lefts], dim=1))
    rows, lower = torch.linalg.qr(torch.cat([right.double() for right in rights]).T)
    ranks = [left.shape[1] for left in lefts]
    cores = [a @ b.T for a, b in zip(upper.split(ranks, dim=1), lower.split(ranks, dim=1), strict=True)]
    return columns, torch.stack(cores), rows.T


def inner_products(lefts: Sequence[torch.Tensor], rights: Sequence[torch.Tensor]) -> torch.Tensor:
    """<L_i R_i, L_j R_j> of all pairs, float64 [experts, experts], without forming a product."""
    import torch

    left = torch.cat([left.double() for left in lefts], dim=1)
    right = torch.cat([right.double() for right in rights])
    products = (left.T @ left) * (right @ right.T)
    ranks = [factor.shape[1] for factor in lefts]
    rows = [block.sum(dim=0) for block in products.split(ranks)]
    return torch.stack([torch.stack([block.sum() for block in row.split(ranks)]) for row in rows])


def square(left: torch.Tensor, right: torch.Tensor) -> float:
    """The squared Frobenius norm of L R from the factors' Gram matrices."""
    left, right = left.double(), right.double()
    return max(0.0, float(((left.T @ left) * (right @ right.T)).sum()))


def truncated(left: torch.Tensor, right: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The best approximation of L R with at most this rank, and its squared error (Eckart and Young 1936)."""
    if left.shape[1] <= rank:
        return left, right, 0.0
    columns, core, rows = rotated([left], [right])
    u, s, vh = svd(core[0])
    kept = max(1, min(rank, len(s)))
    # The singular values are shared out evenly, as an optimiser would leave them.
    roots = s[:kept].sqrt()
    error = float(s[kept:].square().sum())
    return ((columns @ u[:, :kept]) * roots).float(), (roots[:, None] * (vh[:kept] @ rows)).float(), error


def narrowed(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """L R with an inner dimension of at most min(m, n): beyond that, factors are larger than the product."""
    import torch

    m, n = left.shape[0], right.shape[1]
    if left.shape[1] <= min(m, n):
        return left, right
    if m <= n:
        return torch.eye(m, dtype=left.dtype, device=left.device), left @ right
    return left @ right, torch.eye(n, dtype=left.dtype, device=left.device)


def approximated(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """A rank-``rank`` approximation of a dense matrix, and its squared error, measured and not estimated.

    Randomised subspace iteration (Halko et al. 2011, arXiv 0909.4061, Algorithm 4.4), eight more columns than wanted
    and six rounds, from a fixed seed; exact where the rank wanted is no less than half of min(m, n).
    """
    import torch

    m, n = matrix.shape
    if rank >= min(m, n):
        left, right = narrowed(matrix, torch.eye(n, dtype=matrix.dtype, device=matrix.device))
        return left, right, 0.0
    if 2 * rank >= min(m, n):
        u, s, vh = svd(matrix.double())
    else:
        drawn = torch.randn(n, rank + 8, generator=torch.Generator().manual_seed(0)).to(matrix)
        basis = torch.linalg.qr(matrix @ drawn).Q
        for _ in range(6):
            basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
        u, s, vh = svd((basis.T @ matrix).double())
        u = basis.double() @ u
    roots = s[:rank].sqrt()
    left, right = (u[:, :rank] * roots).float(), (roots[:, None] * vh[:rank]).float()
    return left, right, float(torch.linalg.vector_norm(matrix - left @ right, dtype=torch.float64)) ** 2
