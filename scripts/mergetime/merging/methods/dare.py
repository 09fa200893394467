"""DARE and DELLA: drop at random and rescale, before another method merges."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergetime.merging.method import (
    DENSITY,
    LAMBDA,
    TABLES,
    WEIGHTS,
    MergeMethod,
    Numbers,
    Parameter,
    Scope,
    TensorContext,
    in_order,
)
from mergetime.merging.methods.ties import OF_ELECTION, Election, elect_and_merge

# The registry imports this file to check configs, and torch takes seconds to import.
if TYPE_CHECKING:
    import torch


_of_thread = threading.local()
BITS = 16
STEPS = 1 << BITS
"""Probabilities are multiples of 1/65536."""


def dare(
    stack: torch.Tensor,
    context: TensorContext,
    density: Numbers,
    lambda_: float,
    weights: Mapping[str, float] | None,
    rescale: str,
) -> torch.Tensor:
    """DARE with Task Arithmetic: random entries dropped, the others rescaled, then summed.

        drop:     m_i ~ Bernoulli(density), of its own for every entry
        rescale:  t_i = m_i tau_i / density
        merge:    tau = lambda * sum_i w_i t_i

    Paper: Yu et al. 2024, Language models are super Mario (arXiv 2311.03099), Section 3, drop and rescale with drop
    rate p = 1 - density, and Task Arithmetic after it.
    Official code, MergeBench and PEFT divide by density, as here; mergekit rescales to the L1 norm before the drop
    (rescale: l1).
    An expert's mask derives from the seed, its id and the tensor's name: neither the order of the experts, nor who
    else is in the pool, nor the number of threads changes it.
    """
    dropped = drop_and_rescale(stack, context, density, rescale)
    return context.scale(context.weigh(dropped, context.weights(weights)).sum(dim=0), lambda_)


def dare_ties(
    stack: torch.Tensor,
    context: TensorContext,
    density: Numbers,
    rescale: str,
    election: Election,
) -> torch.Tensor:
    """DARE, then TIES without its trim: random entries dropped, the others rescaled, signs elected, agreeing mean.

        drop:     m_i ~ Bernoulli(density), of its own for every entry
        rescale:  t_i = m_i tau_i / density
        merge:    as TIES: gamma = sign(sum_i t_i) (0: +1), tau = lambda * mean of the nonzero t_i with that sign

    Papers: Yu et al. 2024, Language models are super Mario (arXiv 2311.03099), drop and rescale with drop rate
    p = 1 - density; Yadav et al. 2023 (arXiv 2306.01708), Algorithm 1, for the election and the mean.
    Dropping already makes it sparse, so there is no second trim, as in mergekit and PEFT; FusionBench trims once more.
    mergekit sums what agrees (merge: sum).
    The election's parameters are those of ``ties``; the masks and the rescaling are those of ``dare``.
    """
    dropped = drop_and_rescale(stack, context, density, rescale)
    return elect_and_merge(dropped, context, election)


def della(
    stack: torch.Tensor,
    context: TensorContext,
    density: Numbers,
    epsilon: Numbers,
    rescale: str,
    election: Election,
) -> torch.Tensor:
    """DELLA: as DARE+TIES, but large entries are more likely to stay.

        drop:     m_i ~ Bernoulli(q), q = density - epsilon + 2 epsilon rank/(n - 1), by rank of magnitude in the row
        rescale:  t_i = m_i tau_i / q
        merge:    as TIES: sign elected, agreeing mean, times lambda

    Paper: Deep et al. 2024, DELLA-Merging (arXiv 2406.11617), Section 3: MAGPRUNE, elect, fuse.
    Ranks are within a row, the smallest at 0, equal magnitudes in the order in which they stand; a tensor with one
    dimension is one row. mergekit rescales to the L1 norm of the tensor instead (rescale: l1). The authors' code and
    mergekit weight before the election and divide by the weights that agree (vote: weighted, divide: weights).
    """
    dropped = magnitude_drop(stack, context, density, epsilon, rescale)
    return elect_and_merge(dropped, context, election)


def della_linear(
    stack: torch.Tensor,
    context: TensorContext,
    density: Numbers,
    epsilon: Numbers,
    lambda_: float,
    weights: Mapping[str, float] | None,
    rescale: str,
) -> torch.Tensor:
    """DELLA without an election: large entries are more likely to stay, and what stays is summed.

        drop, rescale:  as DELLA
        merge:          tau = lambda * sum_i w_i t_i

    Paper: Deep et al. 2024, DELLA-Merging (arXiv 2406.11617), Section 3, MAGPRUNE alone, as DARE goes with Task
    Arithmetic; mergekit's ``della_linear``, which rescales to the L1 norm (rescale: l1).
    """
    dropped = magnitude_drop(stack, context, density, epsilon, rescale)
    return context.scale(context.weigh(dropped, context.weights(weights)).sum(dim=0), lambda_)


def drop_and_rescale(
    stack: torch.Tensor, context: TensorContext, density: Numbers, rescale: str = "density"
) -> torch.Tensor:
    """Keep entries with probability ``density`` and rescale what stays, to the expectation, the L1 norm, or not."""
    shares = _shares(context, density)
    return _rescaled(_kept(stack, context, shares), context, 1 / _columns(shares, stack), rescale)


def magnitude_drop(
    stack: torch.Tensor, context: TensorContext, density: Numbers, epsilon: Numbers, rescale: str = "density"
) -> torch.Tensor:
    """Keep entries with the probability that goes with their rank in the row, and rescale what stays."""
    probabilities = _probabilities(stack, context, density, epsilon)
    return _rescaled(_kept(stack, context, probabilities), context, 1 / probabilities, rescale)


def norms_of_dare(stack: torch.Tensor, context: TensorContext, density: Numbers) -> torch.Tensor:
    """L1 norms [experts, 2] before and after the drop, float64."""
    return _norms(stack, _kept(stack, context, _shares(context, density)))


def norms_of_della(stack: torch.Tensor, context: TensorContext, density: Numbers, epsilon: Numbers) -> torch.Tensor:
    """L1 norms [experts, 2] before and after the drop by rank, float64."""
    return _norms(stack, _kept(stack, context, _probabilities(stack, context, density, epsilon)))


def uniforms(seed: int, expert: str, tensor: str, start: int, count: int) -> Any:
    """Uniform 16-bit integers [count] as a NumPy array: those of an expert's entries in a tensor from ``start`` on.

    A pure function of its arguments: a block's numbers are the same whether drawn alone or with the whole tensor. Every
    bit is a stream of its own, so that who needs only the first bits draws only those.
    """
    import numpy as np

    first, offset = divmod(start, 64)
    words = (offset + count + 63) // 64
    drawn = np.zeros(words * 64, dtype=np.uint16)
    for bit in range(BITS):
        plane = _words(_stream(seed, expert, tensor, bit), first, words)
        drawn |= np.unpackbits(plane.view(np.uint8), bitorder="little").astype(np.uint16) << (BITS - 1 - bit)
    return drawn[offset : offset + count]


def below(limit: int, seed: int, expert: str, tensor: str, start: int, count: int) -> Any:
    """Whether each of the same numbers is below ``limit``, as 0 or 1 in a NumPy array: 64 are compared at a time.

    Bits behind the last 1 of the limit do not matter and are not drawn: for a limit of one half, one bit an entry does.
    """
    import numpy as np

    first, offset = divmod(start, 64)
    words = (offset + count + 63) // 64
    less = np.zeros(words, dtype=np.uint64)
    last = BITS - 1 - (limit & -limit).bit_length() + 1
    for bit in range(last, -1, -1):
        ones = _words(_stream(seed, expert, tensor, bit), first, words)
        less = less | ~ones if limit >> (BITS - 1 - bit) & 1 else less & ~ones
    return np.unpackbits(less.view(np.uint8), bitorder="little")[offset : offset + count]


def _words(state: Any, first: int, count: int) -> Any:
    """``count`` 64-bit words of a stream, from the word ``first`` on."""
    generator = _generator()
    generator.state = state
    return generator.advance(first).random_raw(count)


def _generator() -> Any:
    """A generator of this thread's own, to be set to a state."""
    import numpy as np

    if not hasattr(_of_thread, "generator"):
        _of_thread.generator = np.random.PCG64DXSM(0)
    return _of_thread.generator


@functools.lru_cache(maxsize=4096)
def _stream(seed: int, expert: str, tensor: str, bit: int) -> Any:
    """The state at which the random bits of an expert's tensor begin: deriving it costs more than using it."""
    import numpy as np

    # A length before each part: no two different tuples give the same bytes.
    parts = [str(part).encode() for part in (seed, expert, tensor, bit)]
    digest = hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).digest()
    return np.random.PCG64DXSM(int.from_bytes(digest, "big")).state


def attainable(probability: float) -> float:
    """The probability, at most 1/131072 off, with which an entry is kept: 16 random bits an entry decide.

    What stays is divided by this one, so the expectation is kept exactly.
    """
    return 1.0 if probability == 1.0 else min(max(round(probability * STEPS), 1), STEPS - 1) / STEPS


def _kept(stack: torch.Tensor, context: TensorContext, probabilities: Sequence[float] | torch.Tensor) -> torch.Tensor:
    """The stack with every entry kept with its probability, an attainable one, else 0.

    Args:
        stack: [experts, ...].
        context: where it comes from.
        probabilities: of each expert, or of each entry.
    """
    import torch

    kept = torch.empty_like(stack)
    for expert, row, probability, masked in zip(context.experts, stack, probabilities, kept, strict=True):
        entries = (context.seed, expert, context.tensor, context.start, row.numel())
        if isinstance(probability, torch.Tensor):
            mask = uniforms(*entries) < (probability.cpu() * STEPS).round().flatten().numpy()
        elif probability == 1.0:
            masked.fill_(1.0)
            continue
        else:
            mask = below(round(probability * STEPS), *entries)
        masked.copy_(torch.from_numpy(mask).view(row.shape))
    # Infinite entries become NaN, which the engine refuses by name.
    return kept.mul_(stack)


def _shares(context: TensorContext, density: Numbers) -> list[float]:
    """The attainable probability with which the entries of each expert are kept."""
    return [attainable(number) for number in in_order(density, context.experts)]


def _columns(numbers: Sequence[float], stack: torch.Tensor) -> torch.Tensor:
    """A number of each expert, to be broadcast over its part of the stack [experts, ...]."""
    import torch

    return torch.tensor(numbers, dtype=torch.float64).view((-1,) + (1,) * (stack.dim() - 1)).to(stack.device)


def _probabilities(stack: torch.Tensor, context: TensorContext, density: Numbers, epsilon: Numbers) -> torch.Tensor:
    """The attainable probability of each entry [experts, ...] by its rank in the row; 1 where density is 1."""
    densities, epsilons = (in_order(numbers, context.experts) for numbers in (density, epsilon))
    magnitudes = stack.abs()
    size = magnitudes.shape[-1]
    probabilities = magnitudes.argsort(dim=-1, stable=True).argsort(dim=-1).to(stack.dtype).div_(max(1, size - 1))
    for own, share, reach in zip(probabilities, densities, epsilons, strict=True):
        if share == 1.0:
            own.fill_(1.0)
        else:
            own.mul_(2 * reach).add_(share - reach).mul_(STEPS).round_().clamp_(1, STEPS - 1).div_(STEPS)
    return probabilities


def _rescaled(kept: torch.Tensor, context: TensorContext, inverse: torch.Tensor, rescale: str) -> torch.Tensor:
    import torch

    if rescale == "none":
        return kept
    if rescale == "density":
        return kept.mul_(inverse.to(kept.dtype))
    if context.survey is None:
        raise ValueError("rescale: l1 needs the norms of the whole tensor")
    before, after = context.survey[:, 0], context.survey[:, 1]
    # mergekit leaves a tensor whose norm is next to nothing as it is.
    factor = torch.where((before < 1e-7) | (after < 1e-7), 1.0, before / after).to(kept)
    return kept.mul_(factor.view((-1,) + (1,) * (kept.dim() - 1)))


def _norms(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.stack([torch.linalg.vector_norm(x.flatten(1), 1, dim=1) for x in (before, after)], dim=1).double()


def _too_wide(density: Numbers, epsilon: Numbers) -> str | None:
    """Probabilities would lie outside (0, 1); with density 1 nothing is dropped."""
    experts = [name for numbers in (density, epsilon) if isinstance(numbers, Mapping) for name in numbers] or [""]
    # An expert that only one of them names is refused for that, when the experts are known.
    known = [name for name in experts if all(not isinstance(n, Mapping) or name in n for n in (density, epsilon))]
    for share, reach in zip(in_order(density, known), in_order(epsilon, known), strict=True):
        if share != 1.0 and reach >= min(share, 1 - share):
            return f"epsilon: {reach} must be less than density and than 1 - density, and density is {share}"
    return None


def _where_rescaled(rescale: str) -> Scope | None:
    return "tensor" if rescale == "l1" else None


RESCALE = Parameter(
    "rescale",
    "density",
    "what stays is divided by its probability, scaled to the L1 norm, or left as it is",
    choices=("density", "l1", "none"),
)
EPSILON = Parameter(
    "epsilon", 0.15, "half the range of the probabilities around density", 0.0, 0.5, low_is_open=True, by_expert=True
)
# A vote that ends in 0 is +: the majority of the model is the official TIES's alone.
_OF_ELECTION = tuple(parameter for parameter in OF_ELECTION if parameter.name != "zero")
_WEIGHTED = {"vote": "weighted", "divide": "weights"}
_MASKS = "The masks are drawn from other random numbers, with probabilities in steps of 1/65536."
METHODS = (
    MergeMethod(
        "dare",
        "random sparsification",
        dare,
        (DENSITY, LAMBDA, WEIGHTS, RESCALE, TABLES),
        presets={
            "authors": {"density": 0.1},
            "mergekit": {"density": 1.0, "rescale": "l1"},
            "mergebench": {"density": 0.2, "tables": "kept"},
            "peft": {},
        },
        remarks={
            "authors": f"{_MASKS} 0.1 is the paper's drop rate of 0.9; the authors' code drops 10 % unless it is told "
            "otherwise, and rescales only with --use_weight_rescale.",
            "mergekit": _MASKS,
            "mergebench": f"{_MASKS} MergeBench computes in bfloat16, here sums are in fp32.",
            "peft": f"{_MASKS} PEFT must be told a density.",
        },
        survey=(norms_of_dare, _where_rescaled),
        stochastic=True,
    ),
    MergeMethod(
        "dare_ties",
        "sign election",
        dare_ties,
        (DENSITY, RESCALE, *_OF_ELECTION),
        presets={"mergekit": {"density": 1.0, "rescale": "l1", "vote": "weighted", "merge": "sum"}, "peft": {}},
        remarks={"mergekit": _MASKS, "peft": f"{_MASKS} PEFT must be told a density."},
        survey=(norms_of_dare, _where_rescaled),
        combined={"election": Election},
        stochastic=True,
    ),
    MergeMethod(
        "della",
        "sign election",
        della,
        (DENSITY, EPSILON, RESCALE, *_OF_ELECTION),
        conflict=_too_wide,
        spaces=("delta",),
        presets={
            "authors": _WEIGHTED,
            "mergekit": {"density": 1.0, "rescale": "l1", **_WEIGHTED},
        },
        remarks={
            "authors": f"{_MASKS} The authors' code must be told a drop rate; its window is twice epsilon, 0 unless it "
            "is told otherwise. Its README drops 0.3 with a window of 0.14: density 0.7, epsilon 0.07.",
            "mergekit": f"{_MASKS} Of tensors with three dimensions or more, mergekit ranks along the second, not the "
            "last.",
        },
        survey=(norms_of_della, _where_rescaled),
        combined={"election": Election},
        stochastic=True,
    ),
    MergeMethod(
        "della_linear",
        "random sparsification",
        della_linear,
        (DENSITY, EPSILON, LAMBDA, WEIGHTS, RESCALE),
        conflict=_too_wide,
        spaces=("delta",),
        presets={"mergekit": {"density": 1.0, "rescale": "l1"}},
        remarks={"mergekit": f"{_MASKS} Of tensors with three dimensions or more, mergekit ranks along the second."},
        survey=(norms_of_della, _where_rescaled),
        stochastic=True,
    ),
)
