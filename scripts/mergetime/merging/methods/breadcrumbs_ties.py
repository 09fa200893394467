"""Breadcrumbs before the election of TIES."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergetime.merging.method import MergeMethod, TensorContext
from mergetime.merging.methods.sparse import EXCESS, GAMMA, KEPT, PER, between
from mergetime.merging.methods.ties import OF_ELECTION, Election, elect_and_merge

# The registry imports this file to check configs, and torch takes seconds to import.
if TYPE_CHECKING:
    import torch


def breadcrumbs_ties(stack: torch.Tensor, context: TensorContext, election: Election) -> torch.Tensor:
    """Breadcrumbs with TIES: the largest and the smallest entries removed, a sign elected, agreeing mean.

        mask:   of n entries by falling magnitude, the first floor(gamma n) go, the next floor(density n) stay;
                where these are more than n, fewer go (excess: gamma) or fewer stay (density)
        merge:  as TIES: gamma = sign(sum_i t_i) (0: +1), tau = lambda * mean of the nonzero t_i with that sign

    Papers: Davari and Belilovsky 2024, Model Breadcrumbs (arXiv 2312.06795), Section 3, for the mask; Yadav et al. 2023
    (arXiv 2306.01708), Algorithm 1, for the election and the mean.
    mergekit, which combines the two, weighs entries before the election and sums those that agree.
    """
    return elect_and_merge(stack, context, election)


METHODS = (
    MergeMethod(
        "breadcrumbs_ties",
        "sign election",
        breadcrumbs_ties,
        # A vote that ends in 0 is +: the majority of the model is the official TIES's alone.
        (KEPT, GAMMA, PER, EXCESS, *(parameter for parameter in OF_ELECTION if parameter.name != "zero")),
        spaces=("delta",),
        presets={"mergekit": {"density": 1.0, "vote": "weighted", "merge": "sum", "divide": "weights"}},
        trim=between,
        combined={"election": Election},
    ),
)
