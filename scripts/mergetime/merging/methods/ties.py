"""TIES: trim, elect signs, merge what agrees."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergetime.merging.method import DENSITY, LAMBDA, Method, TensorContext

# The registry imports this file to check configs, and torch takes seconds to import.
if TYPE_CHECKING:
    import torch


def ties(stack: torch.Tensor, context: TensorContext, density: float, lambda_: float) -> torch.Tensor:
    """TIES: every expert trimmed to its largest entries, one sign elected an entry, mean of the entries that agree.

        trim:   t_i = tau_i where |tau_i| is among the k largest of its tensor, else 0;  k = max(1, floor(density n))
        elect:  gamma = sign(sum_i t_i), +1 where the sum is 0
        merge:  tau = lambda * sum_{i: sign(t_i) = gamma} t_i / #{i: sign(t_i) = gamma}, 0 where nobody agrees

    Paper: Yadav et al. 2023, TIES-Merging (arXiv 2306.01708), Algorithm 1.
    Exactly k entries stay; among equal magnitudes the one that comes first in the tensor does. The official code trims
    over the whole model, keeps every entry tied at the threshold (39 % instead of 20 % of a bfloat16 update) and gives
    a zero sum the majority sign of the model; mergekit trims per tensor, votes after weighting and divides by the
    sum of the weights that agree; MergeBench takes the sum instead of the mean. Here: per tensor, as mergekit and PEFT.
    In adapter space it is PEFT's ``ties``: A and B on their own, votes on unweighted entries, then weights, division
    by the count. PEFT turns to ``linear`` for a single adapter; here a single expert is trimmed too.
    """
    return elect_and_average(trim(stack, density), context, lambda_)


def trim(stack: torch.Tensor, density: float) -> torch.Tensor:
    """Keep exactly max(1, floor(density * entries)) entries of every expert: the largest, the first among equals."""
    import torch

    size = stack[0].numel()
    count = max(1, int(density * size))
    if count == size:
        return stack
    kept = torch.empty_like(stack, dtype=torch.bool)
    for tensor, mask in zip(stack, kept, strict=True):
        magnitudes = tensor.abs().flatten()
        threshold = torch.kthvalue(magnitudes, size - count + 1).values
        largest = magnitudes >= threshold
        surplus = int(largest.count_nonzero()) - count
        if surplus:
            tied = torch.nonzero(magnitudes == threshold).flatten()
            largest[tied[-surplus:]] = False
        mask.copy_(largest.view_as(tensor))
    return torch.where(kept, stack, 0.0)


def elect_and_average(stack: torch.Tensor, context: TensorContext, lambda_: float) -> torch.Tensor:
    """Elect each entry's sign by the sum over experts (0 counts as +) and average the nonzero entries that have it."""
    import torch

    elected = torch.where(stack.sum(dim=0) >= 0, 1.0, -1.0)
    agreeing = stack * elected > 0
    total = context.weigh(torch.where(agreeing, stack, 0.0), lambda_).sum(dim=0)
    return total / agreeing.sum(dim=0).clamp(min=1)


METHODS = (Method("ties", "sign election", ties, (DENSITY, LAMBDA)),)
