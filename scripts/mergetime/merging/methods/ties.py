"""TIES: trim, elect signs, merge what agrees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergetime.merging.method import (
    DENSITY,
    LAMBDA,
    RANKED_TABLES,
    TIED,
    WEIGHTS,
    MergeMethod,
    Numbers,
    Parameter,
    Scope,
    TensorContext,
    Tied,
    Trim,
)

# The registry imports this file to check configs, and torch takes seconds to import.
if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Election:
    """How signs are elected and agreeing entries merged, a field a parameter.

    Attributes:
        lambda_: scale of the result.
        weights: of the experts, by name.
        elect: by the ``sum`` of the entries, or by the ``count`` of their signs.
        vote: on ``weighted`` entries or on ``unweighted`` ones.
        merge: the agreeing entries' ``mean`` or ``sum``.
        divide: the mean divides by the ``count`` of agreeing entries, or by the sum of their ``weights``.
        zero: the sign where the vote is 0: ``plus``, or the model's ``majority`` (minus where that is 0, too).
    """

    lambda_: float = 1.0
    weights: Mapping[str, float] | None = None
    elect: str = "sum"
    vote: str = "unweighted"
    merge: str = "mean"
    divide: str = "count"
    zero: str = "plus"


def ties(stack: torch.Tensor, context: TensorContext, election: Election) -> torch.Tensor:
    """TIES: every expert trimmed to its largest entries, one sign elected an entry, mean of the entries that agree.

        trim:   t_i = tau_i where |tau_i| is among the k largest, else 0;  k = max(1, floor(density n))
        elect:  gamma = sign(sum_i t_i), +1 where the sum is 0
        merge:  tau = lambda * sum_{i: sign(t_i) = gamma} w_i t_i / #{i: sign(t_i) = gamma}, 0 where nobody agrees

    Paper: Yadav et al. 2023, TIES-Merging (arXiv 2306.01708), Algorithm 1.
    Exactly k entries stay; among equal magnitudes the one that comes first does. Peers differ; each difference is a
    parameter.
    trim: the official code and MergeBench rank over the whole model, mergekit and PEFT within a tensor, the default.
    tied: the official code and MergeBench keep every entry down to the (k + 1)-th magnitude (39 % instead of 20 % of a
    bfloat16 update).
    elect: by the sum, or by counting signs (PEFT's ``frequency``).
    vote: mergekit weights before the election, PEFT after it.
    merge, divide: MergeBench sums; mergekit divides by the sum of the weights that agree.
    zero: the official code gives a zero sum the sign of the model's majority, - where that is 0, too; all others +.
    In adapter space it is PEFT's ``ties``: A and B on their own, votes on unweighted entries, then weights, division
    by the count. PEFT turns to ``linear`` for a single adapter; here a single expert is trimmed too.
    """
    return elect_and_merge(stack, context, election)


def elect_and_merge(stack: torch.Tensor, context: TensorContext, election: Election) -> torch.Tensor:
    """Elect each entry's sign over the experts and merge the nonzero entries that have it.

    Args:
        stack: [experts, ...] fp32, trimmed or dropped already.
        context: where it comes from; with ``zero`` majority, its survey is the sum of the model's elected signs.
        election: how.
    """
    import torch

    weights = context.weights(election.weights)
    weighted = context.weigh(stack, weights)
    ballot = weighted if election.vote == "weighted" else stack
    elected = _tally(ballot, election)
    if election.zero == "majority" and context.survey is not None:
        elected = torch.where(elected == 0, context.survey, elected)
        elected.gt_(0)
    else:
        elected.ge_(0)
    # From here -1 or 1.
    elected.mul_(2).sub_(1)
    agreeing = (ballot * elected).relu_()
    ones = stack.new_ones(len(stack))
    if weighted is ballot:
        # What agrees has the elected sign: the sum of the magnitudes is the sum of the entries, up to that sign.
        total = _summed(ones, agreeing).mul_(elected)
        agreeing.sign_()
    else:
        agreeing.sign_()
        total = _summed(ones, weighted * agreeing)
    if election.merge == "mean" and election.divide == "weights":
        divisor = _summed(stack.new_tensor(context.shares(weights)), agreeing)
        total.div_(torch.where(divisor == 0, 1.0, divisor))
    elif election.merge == "mean":
        total.div_(_summed(ones, agreeing).clamp_(min=1))
    return context.scale(total, election.lambda_)


def elected_signs(stack: torch.Tensor, context: TensorContext, election: Election) -> torch.Tensor:
    """The sum of the elected signs, float64: summed over the model, its sign is the majority's."""
    import torch

    weights = context.weights(election.weights)
    ballot = context.weigh(stack, weights) if election.vote == "weighted" else stack
    return _tally(ballot, election).sign().sum(dtype=torch.float64)


def _summed(factors: torch.Tensor, stack: torch.Tensor) -> torch.Tensor:
    """The sum over the experts, each times its factor: a product of matrices, which takes half the time of a sum."""
    return (factors @ stack.flatten(1)).view(stack.shape[1:])


def _tally(ballot: torch.Tensor, election: Election) -> torch.Tensor:
    return ballot.sign().sum(dim=0) if election.elect == "count" else ballot.sum(dim=0)


def majority_over(zero: str) -> Scope | None:
    """Where the elected signs are summed for the majority's; None: nobody asks for it."""
    return "model" if zero == "majority" else None


def trimmed(density: Numbers, trim: Scope, tied: Tied) -> Trim:
    """The trim that the parameters ask for."""
    return Trim(density, scope=trim, tied=tied)


TRIM = Parameter(
    "trim", "tensor", "where entries are ranked: within a tensor, or over the model", choices=("tensor", "model")
)
ELECT = Parameter(
    "elect", "sum", "what elects a sign: the sum of the entries, or the count of their signs", choices=("sum", "count")
)
VOTE = Parameter("vote", "unweighted", "whether weights count in the election", choices=("unweighted", "weighted"))
MERGE = Parameter("merge", "mean", "how agreeing entries are merged", choices=("mean", "sum"))
DIVIDE = Parameter("divide", "count", "what a mean divides by", choices=("count", "weights"))
ZERO = Parameter(
    "zero",
    "plus",
    "the sign of a vote that ends in 0: plus, or the majority's in the model, minus where that is 0",
    choices=("plus", "majority"),
)
OF_ELECTION = (LAMBDA, WEIGHTS, ELECT, VOTE, MERGE, DIVIDE, ZERO)
AUTHORS = {"density": 0.2, "trim": "model", "tied": "next", "zero": "majority"}
METHODS = (
    MergeMethod(
        "ties",
        "sign election",
        ties,
        (DENSITY, TRIM, TIED, *OF_ELECTION, RANKED_TABLES),
        presets={
            "authors": AUTHORS,
            "mergekit": {"density": 1.0, "vote": "weighted", "divide": "weights"},
            "mergebench": {**AUTHORS, "merge": "sum", "tables": "head_ranked"},
            "peft": {},
        },
        remarks={
            "authors": "Of adapters, k is a share of the tensors that they adapt, not of the whole model.",
            "mergekit": "Among equal magnitudes mergekit keeps whichever its sort happens to put first.",
            "mergebench": "MergeBench computes in bfloat16, here sums are in fp32; its code goes wrong behind a tensor "
            "of the base that is all zeros. Of adapters, k is a share of the tensors that they adapt.",
            "peft": "PEFT must be told a density. Among equal magnitudes it keeps whichever its sort happens to put "
            "first, and nothing where floor(density n) is 0; here 1 entry stays.",
        },
        trim=trimmed,
        survey=(elected_signs, majority_over),
        combined={"election": Election},
    ),
)
