"""Methods on singular values and vectors, at the true rank: TSV-Merge, Iso-C, Subspace Boosting, KnOTS.

A spectral function must not look beyond the true rank: on a LoRA update, the singular vectors that a full-size SVD
gives for the singular values 0 are arbitrary, and methods that scale them up return noise that differs between LAPACK
drivers. In the task vector of a full checkpoint the directions beyond the true rank hold what rounding to
the checkpoint's dtype has added (``mergetime.merging.rounding``).

The architecture files say which tensors are matrices of linear layers (``mergetime.architectures``): embeddings,
position tables, heads and routers are not. A bank of experts [experts of the model, m, n] is merged matrix by matrix.
Transposed weights (GPT-2) need no care: the functions on whole matrices give the transpose of the result, and KnOTS
sees adapters alone, which are not read for such weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergetime.merging.method import (
    DENSITY,
    LAMBDA,
    MATRIX_TENSORS,
    TIED,
    MergeMethod,
    Numbers,
    Parameter,
    TensorContext,
)
from mergetime.merging.methods.average import task_arithmetic
from mergetime.merging.methods.ties import (
    OF_ELECTION,
    TRIM,
    Election,
    elect_and_merge,
    elected_signs,
    majority_over,
    trimmed,
)

# The registry imports this file to check configs, and torch takes seconds to import.
if TYPE_CHECKING:
    import torch

    from mergetime.merging.rounding import Rounding

_ROUNDING = 1e-14
"""Entries of a right singular vector in float64 are exact to about this times the ratio of the singular values."""


def tsv_merge(cores: torch.Tensor, context: TensorContext, lambda_: float, rounding: str) -> torch.Tensor:
    """TSV-Merge: the strongest singular directions of every expert, made orthogonal across experts.

        D_i = U_i S_i V_i^T, of which the first floor(min(m, n) / N) singular triples stay (at least one)
        U = [U_1 .. U_N], V = [V_1 .. V_N], S = diag(S_1 .. S_N);  U' = P_U Q_U^T from U = P_U D_U Q_U^T, V' likewise
        tau = lambda * U' S V'^T

    Paper: Gargiulo et al. 2025, Task Singular Vectors (arXiv 2412.00081), Algorithm 1: orthogonal Procrustes.
    Of an adapter no more than its rank is there to stay, and of a checkpoint into which one was merged no more than
    rises above rounding; the authors' code fills up with vectors of the singular value 0, which are arbitrary. Other
    tensors than matrices are averaged and scaled by lambda like all. The authors' code takes all tensors with two
    dimensions for matrices, embeddings and head, too (matrices: all). One expert alone comes out as it went in.
    """
    import torch

    from mergetime.merging.factors import svd

    count = len(cores)
    kept = max(1, min(context.shape) // count)
    noise = context.rounding if rounding == "dropped" else ()
    triples = [svd(core, own) for core, own in itertools.zip_longest(cores, noise)]
    left = torch.cat([u[:, :kept] for u, _, _ in triples], dim=1)
    values = torch.cat([s[:kept] for _, s, _ in triples])
    right = torch.cat([vh[:kept] for _, _, vh in triples])
    if not len(values):
        return torch.zeros_like(cores[0])
    return (_polar(left) * (lambda_ * values)) @ _polar(right)


def iso_c(cores: torch.Tensor, context: TensorContext, lambda_: float, rounding: str) -> torch.Tensor:
    """Iso-C: the summed task vector with all its singular values at their mean.

        sum_i D_i = U S V^T;  tau = lambda * mean(S) * U V^T

    Paper: Marczak et al. 2025, No task left behind (arXiv 2502.04959), Equations 6 and 7.
    The mean is over the true rank r, as in the equations. The authors' code takes it over min(m, n) and keeps arbitrary
    vectors for the zero singular values, which for adapters makes it another, ill-defined method. Other tensors than
    matrices are averaged. The authors' code takes all tensors with two dimensions for matrices, embeddings and head,
    too (matrices: all).
    """
    from mergetime.merging.factors import svd

    u, s, vh = svd(cores.sum(dim=0), _summed(context, rounding))
    return u @ vh * (lambda_ * float(s.mean()) if len(s) else 0.0)


def boosted_task_arithmetic(
    cores: torch.Tensor, context: TensorContext, beta: float, lambda_: float, rounding: str
) -> torch.Tensor:
    """Subspace Boosting on Task Arithmetic: weak singular directions of the summed task vector raised.

        sum_i D_i = U S V^T;  j = the first index with (s_1 + .. + s_j) / sum(S) >= beta;  s*_i = max(s_i, s_j)
        tau = lambda * U S* V^T

    Paper: Skorobogat et al. 2025, Subspace-Boosted Model Merging (arXiv 2506.16506), Algorithm 1.
    Only the true rank is raised: the authors' code raises zero singular values too, whose vectors are arbitrary. Other
    tensors than matrices are summed, as Task Arithmetic does.
    """
    return boost(cores.sum(dim=0), beta, _summed(context, rounding)) * lambda_


def boosted_ties(stack: torch.Tensor, context: TensorContext, election: Election) -> torch.Tensor:
    """Subspace Boosting on TIES: TIES as by ``ties``, then weak singular directions of its matrices raised.

        T = TIES(tau_1 .. tau_N) = U S V^T;  j = the first index with (s_1 + .. + s_j) / sum(S) >= beta
        tau = U S* V^T,  s*_i = max(s_i, s_j)

    Papers: Skorobogat et al. 2025 (arXiv 2506.16506), Algorithm 1; Yadav et al. 2023 (arXiv 2306.01708), Algorithm 1.
    Trimming makes the matrix dense and of full rank, so this is an SVD of the whole matrix. Other tensors than matrices
    are those of TIES.
    """
    return elect_and_merge(stack, context, election)


def boost(matrix: torch.Tensor, beta: float, rounding: Rounding | None = None) -> torch.Tensor:
    """``matrix`` [m, n] with the singular values behind the cutoff raised to that at the cutoff, at its true rank."""
    from mergetime.merging.factors import svd

    u, s, vh = svd(matrix, rounding)
    if not len(s):
        return matrix * 0
    shares = s.cumsum(0) / s.sum()
    cutoff = min(int((shares < beta).sum()), len(s) - 1)
    return (u * s.clamp(min=float(s[cutoff]))) @ vh


def boost_merged(matrix: torch.Tensor, context: TensorContext, beta: float) -> torch.Tensor:
    """Boost a merged matrix [m, n], computing in float64."""
    return boost(matrix.double(), beta).to(matrix.dtype)


def knots(
    lefts: Sequence[torch.Tensor],
    rights: Sequence[torch.Tensor],
    context: TensorContext,
    density: Numbers,
    lambda_: float,
    merge_by: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """KnOTS: the experts' updates brought into one basis by an SVD, then merged there.

        [D_1 .. D_N] = U S [V_1^T .. V_N^T];  V^T = merge(V_1^T .. V_N^T);  tau = lambda * U S V^T

    Paper: Stoica et al. 2025, Model merging with SVD to tie the KnOTS (arXiv 2410.19735), Section 4.
    The V_i are merged by TIES (ties, the default: trim to density, elect, mean) or by their mean (mean, which is the
    mean of the updates). The updates are B A alpha / r; the authors' code leaves alpha / r out. For adapters
    only: U has as many columns as the stacked updates have rank.
    Entries are ranked within the V_i of a module, k of them stay, and a vote of 0 is +. The authors' code merges the
    S V_i: it ranks these over the whole model, keeps all down to the (k + 1)-th magnitude, and gives a vote of 0 the
    sign of the model's majority.
    """
    import torch

    from mergetime.merging.factors import svd
    from mergetime.merging.method import Trim
    from mergetime.merging.trimming import trim_stack

    basis, upper = torch.linalg.qr(torch.cat([left.double() for left in lefts], dim=1))
    rows, lower = zip(*(torch.linalg.qr(right.double().T) for right in rights), strict=True)
    ranks = [right.shape[0] for right in rights]
    cores = [a @ b.T for a, b in zip(upper.split(ranks, dim=1), lower, strict=True)]
    u, s, vh = svd(torch.cat(cores, dim=1))
    parts = vh.split([core.shape[1] for core in cores], dim=1)
    stack = torch.stack([part @ row.T for part, row in zip(parts, rows, strict=True)])
    # Where an expert has no part in a direction its entries are rounding, which has signs, and must not vote.
    stack = stack.where(stack.abs() > (_ROUNDING * s[:1] / s)[:, None], 0.0).float()
    if merge_by == "mean":
        merged = stack.mean(dim=0)
    else:
        merged = elect_and_merge(trim_stack(stack, Trim(density), context.experts), context, Election())
    return ((basis @ u) * (lambda_ * s)).float(), merged.contiguous()


def _summed(context: TensorContext, rounding: str) -> Rounding | None:
    """What rounding has added to the sum of the task vectors, where it is to be dropped."""
    from mergetime.merging.rounding import total

    return total(context.rounding) if rounding == "dropped" else None


def _polar(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest matrix with orthonormal columns (or rows, where it is wide): P Q^T from the SVD P D Q^T."""
    from mergetime.merging.factors import svd

    p, _, qh = svd(matrix)
    return p @ qh


def scaled_mean(context: TensorContext, lambda_: float) -> torch.Tensor:
    """lambda times the mean."""
    return task_arithmetic(context, lambda_, "mean", None)


def scaled_sum(context: TensorContext, lambda_: float) -> torch.Tensor:
    """lambda times the sum."""
    return task_arithmetic(context, lambda_, "sum", None)


BETA = Parameter("beta", 0.2, "share of the summed singular values in front of the cutoff", 0.0, 1.0)
BY = Parameter("merge_by", "ties", "how the aligned parts are merged", choices=("ties", "mean"))
ROUNDING = Parameter(
    "rounding",
    "dropped",
    "whether directions that rounding to a full checkpoint's dtype may have made count as beyond the true rank",
    choices=("dropped", "kept"),
)
FAMILY = "subspaces"
_AUTHORS = {"matrices": "all", "rounding": "kept"}
_RANK = "Of adapters the authors' code is ill-defined: it uses the vectors of zero singular values."
METHODS = (
    MergeMethod(
        "tsv_merge",
        FAMILY,
        tsv_merge,
        (LAMBDA, MATRIX_TENSORS, ROUNDING),
        level="spectrum",
        spaces=("delta",),
        plain=scaled_mean,
        presets={"authors": _AUTHORS},
        remarks={"authors": f"{_RANK} Of more experts than min(m, n) it keeps nothing, here one triple of each."},
    ),
    MergeMethod(
        "iso_c",
        FAMILY,
        iso_c,
        (LAMBDA, MATRIX_TENSORS, ROUNDING),
        level="spectrum",
        spaces=("delta",),
        plain=scaled_mean,
        presets={"authors": _AUTHORS},
        remarks={"authors": _RANK},
    ),
    MergeMethod(
        "subspace_boosting",
        FAMILY,
        boosted_task_arithmetic,
        (BETA, LAMBDA, ROUNDING),
        level="spectrum",
        spaces=("delta",),
        plain=scaled_sum,
        presets={"in_the_wild": {}},
    ),
    MergeMethod(
        "subspace_boosting_ties",
        FAMILY,
        boosted_ties,
        (BETA, DENSITY, TRIM, TIED, *OF_ELECTION),
        spaces=("delta",),
        presets={"in_the_wild": {"lambda": 0.1}},
        trim=trimmed,
        survey=(elected_signs, majority_over),
        combined={"election": Election},
        finish=boost_merged,
    ),
    MergeMethod("knots", FAMILY, knots, (DENSITY, LAMBDA, BY), level="factors", spaces=("delta",), plain=scaled_mean),
)
