"""Methods that know the experts' data: Fisher merging, RegMean, Localize-and-Stitch with trained masks.

What they know is measured beforehand, by measure_expert.py, and comes as ``context.statistics``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergetime.merging.method import TABLES, MergeMethod, Parameter, TensorContext

# The registry imports this file to check configs, and torch takes seconds to import.
if TYPE_CHECKING:
    import torch


def fisher(stack: torch.Tensor, context: TensorContext, floor: float) -> torch.Tensor:
    """Fisher merging: the mean of the task vectors, every entry weighted by its Fisher information.

        tau = sum_i F_i tau_i / sum_i F_i,  F_i at least ``floor``

    Paper: Matena and Raffel 2022, Merging models with Fisher-weighted averaging (arXiv 2111.09832), the closed
    form for diagonal Fisher matrices, with equal coefficients. Taken of the task vectors, it is that of the weights:
    the shares of the base sum to 1.
    The authors divide each F_i by its norm over the model, so that no expert counts for more because its gradients are
    larger. Here that is done at measuring, by the root mean square instead: the same weights, up to a common factor.
    Their floor, 1e-6 before that division, is on the first ("target") model alone, and everything that no expert
    needs goes to it; here nobody is first: the floor is on every expert, so such entries are averaged, and it is in
    units of the root mean square (of the Fisher information itself where that was measured without normalising).
    RegMean's code adds a constant of 1e-10 to every F_i instead.
    """
    weights = _measured(stack, context).clamp(min=floor)
    # Divided first, so that a single expert comes out to the bit.
    return weights.div_(weights.sum(dim=0)).mul_(stack).sum(dim=0)


def regmean(stack: torch.Tensor, context: TensorContext, reduction: float) -> torch.Tensor:
    """RegMean: the linear layer whose outputs are nearest to all experts' on their own inputs; other tensors averaged.

        G'_i = G_i with its off-diagonal entries times ``reduction``,  G_i = X_i^T X_i / positions
        tau = (sum_i tau_i G'_i) (sum_i G'_i)^-1,  for weights [outputs, inputs]

    Paper: Jin et al. 2023, Dataless knowledge fusion by merging weights of language models (arXiv 2212.09849),
    Equation 2. Taken of the task vectors, it is that of the weights: the base's share is the base. Published reductions
    go from 0.1 (most of the authors' configs) to 0.95 (FusionBench's CLIP); 0 takes the diagonals alone, 1 is plain
    least squares.
    Solved in float64, as the mean of the task vectors plus a correction: what no expert's inputs reach is averaged,
    where the authors' plain inverse does not exist. A reduction of 1 takes the pseudo-inverse, which is slow.
    Weights kept as [inputs, outputs] (GPT-2) are turned over for it. Banks of experts are refused: the inputs of each
    of their matrices are not measured.
    """
    import torch

    average = stack.mean(dim=0)
    if context.statistics is None:
        return average
    mean = average.double()
    size = stack.shape[-1]
    total = torch.zeros(size, size, dtype=torch.float64, device=stack.device)
    correction = torch.zeros_like(mean)
    for update, gram in zip(stack, context.statistics, strict=True):
        shrunk = gram.double() * reduction
        shrunk.diagonal().copy_(gram.diagonal())
        total += shrunk
        correction.addmm_(update.double() - mean, shrunk)
    return (mean + _divide(correction, total, exact=reduction < 1.0)).to(stack.dtype)


def localize_and_stitch_trained(stack: torch.Tensor, context: TensorContext) -> torch.Tensor:
    """Localize-and-Stitch with trained masks: what each expert's mask keeps, averaged where masks overlap.

        tau = sum_i m_i tau_i / max(1, sum_i m_i)

    Paper: He et al. 2025, Localize-and-Stitch (arXiv 2408.13656), the stitching step; there is no coefficient.
    The authors' code does the same. MergeBench's port of it counts the overlap with the last of the other masks alone,
    which for more than two experts is another sum.
    """
    masks = _measured(stack, context).to(stack.dtype)
    return (masks * stack).sum(dim=0).div_(masks.sum(dim=0).clamp_(min=1))


def _measured(stack: torch.Tensor, context: TensorContext) -> torch.Tensor:
    """The statistics. Where nobody changed anything, as in a vision tower that no text reaches, none are needed."""
    if context.statistics is not None:
        return context.statistics
    if stack.any():
        raise ValueError(f"{context.tensor}: nothing was measured of it; measure the experts with measure_expert.py")
    return stack.new_ones(stack.shape)


def _divide(left: torch.Tensor, gram: torch.Tensor, *, exact: bool) -> torch.Tensor:
    """left @ gram^-1 for a positive semidefinite matrix; zero where the matrix is, and left with it.

    ``exact`` says that the matrix is positive definite but for rows and columns of zeros.
    """
    import torch

    diagonal = gram.diagonal()
    # Inputs of very different size are brought to one, which the shrunk off-diagonals make well conditioned.
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    scaled = gram * scale * scale[:, None]
    if not exact:
        # Grams come in fp32: directions below its precision are noise.
        precision = len(gram) * torch.finfo(torch.float32).eps
        inverse: torch.Tensor = torch.linalg.pinv(scaled, rtol=precision, hermitian=True)
        return (left * scale) @ inverse * scale
    scaled.diagonal().copy_(torch.where(diagonal > 0, scaled.diagonal(), 1.0))
    factor = torch.linalg.cholesky(scaled)
    solved: torch.Tensor = torch.cholesky_solve((left * scale).T, factor).T * scale
    return solved


FLOOR = Parameter("floor", 1e-6, "least Fisher information, in units of its root mean square", 0.0, low_is_open=True)
REDUCTION = Parameter("reduction", 0.9, "factor of the Gram matrices' off-diagonal entries", 0.0, 1.0)
FAMILY = "with data"
METHODS = (
    MergeMethod("fisher", FAMILY, fisher, (FLOOR,), spaces=("delta",), statistics="fisher"),
    MergeMethod(
        "regmean",
        FAMILY,
        regmean,
        (REDUCTION, TABLES),
        spaces=("delta",),
        presets={"authors": {"reduction": 0.1}, "mergebench": {"reduction": 0.5, "tables": "kept"}},
        remarks={
            "authors": "Most of the authors' configs have 0.1, one has 0.9. What no inputs reach is averaged here; the "
            "authors' inverse does not exist then.",
            "mergebench": "MergeBench must be told a reduction; 0.5 is that of its script. It computes in bfloat16, "
            "here in float64. Where the system is nearly singular it takes a pseudo-inverse, which sets to 0 what no "
            "inputs reach; that is averaged here.",
        },
        whole=True,
        statistics="gram",
    ),
    MergeMethod(
        "localize_and_stitch_trained", FAMILY, localize_and_stitch_trained, spaces=("delta",), statistics="mask"
    ),
)
