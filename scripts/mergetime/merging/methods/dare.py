"""DARE: drop at random and rescale, before another method merges."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from mergetime.merging.method import DENSITY, LAMBDA, Method, TensorContext
from mergetime.merging.methods.ties import elect_and_average

# The registry imports this file to check configs, and torch takes seconds to import.
if TYPE_CHECKING:
    import torch


def dare_ties(stack: torch.Tensor, context: TensorContext, density: float, lambda_: float) -> torch.Tensor:
    """DARE, then TIES without its trim: random entries dropped, the others rescaled, signs elected, agreeing mean.

        drop:     m_i ~ Bernoulli(density), of its own for every entry
        rescale:  t_i = m_i tau_i / density
        merge:    as TIES: gamma = sign(sum_i t_i) (0: +1), tau = lambda * mean of the nonzero t_i with that sign

    Papers: Yu et al. 2024, Language models are super Mario (arXiv 2311.03099), drop and rescale with drop rate
    p = 1 - density; Yadav et al. 2023 (arXiv 2306.01708), Algorithm 1, for the election and the mean.
    Dropping already makes it sparse, so there is no second trim, as in mergekit and PEFT; FusionBench trims once more.
    Official code, MergeBench and PEFT divide by density, as here; mergekit rescales to the L1 norm before the drop.
    An expert's mask derives from the seed, its id and the tensor's name: neither the order of the experts, nor who
    else is in the pool, nor the number of threads changes it.
    """
    return elect_and_average(drop_and_rescale(stack, context, density), context, lambda_)


def drop_and_rescale(stack: torch.Tensor, context: TensorContext, density: float) -> torch.Tensor:
    """Keep every entry with probability ``density`` and divide what stays by it, which keeps the expectation."""
    import torch

    masks = [mask(context, expert, stack.shape[1:], density) for expert in context.experts]
    return torch.where(torch.stack(masks).to(stack.device), stack / density, 0.0)


def mask(context: TensorContext, expert: str, shape: torch.Size, density: float) -> torch.Tensor:
    """The entries that ``expert`` keeps in this tensor."""
    import torch

    # A length before each part: no two different triples give the same bytes.
    parts = [str(part).encode() for part in (context.seed, expert, context.tensor)]
    digest = hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(shape, generator=generator) < density


METHODS = (Method("dare_ties", "sign election", dare_ties, (DENSITY, LAMBDA), stochastic=True),)
