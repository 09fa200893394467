"""Methods that keep parts of each expert: Breadcrumbs, Localize-and-Stitch, Consensus Task Arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mergetime.merging.method import LAMBDA, WEIGHTS, MergeMethod, Numbers, Parameter, Scope, TensorContext, Trim

# The registry imports this file to check configs, and torch takes seconds to import.
if TYPE_CHECKING:
    import torch


def breadcrumbs(
    stack: torch.Tensor, context: TensorContext, lambda_: float, weights: Mapping[str, float] | None
) -> torch.Tensor:
    """Model Breadcrumbs: the largest and the smallest entries removed, what lies between summed.

        mask:   of n entries by falling magnitude, the first floor(gamma n) go, the next floor(density n) stay
        merge:  tau = lambda * sum_i w_i t_i

    Paper: Davari and Belilovsky 2024, Model Breadcrumbs (arXiv 2312.06795), Section 3: layer-wise masks.
    mergekit ranks within a tensor, the default here; ranks within a row are a parameter (per: row).
    """
    return context.scale(context.weigh(stack, context.weights(weights)).sum(dim=0), lambda_)


def localize_and_stitch(stack: torch.Tensor, context: TensorContext) -> torch.Tensor:
    """Localize-and-Stitch without data: every expert's largest entries in the whole model, averaged where they overlap.

        localize:  t_i = tau_i where |tau_i| is among the k = max(1, floor(density n)) largest of the model, else 0
        stitch:    tau = sum_i t_i / #{i: t_i is not 0}, 0 where nobody kept

    Paper: He et al. 2025, Localize-and-Stitch (arXiv 2408.13656), Section 3, the dataless variant; no coefficient.
    The paper suggests 5 %; MergeBench searches 10 to 50 % for larger models.
    """
    return stack.sum(dim=0).div_((stack != 0).sum(dim=0).clamp_(min=1))


def consensus_task_arithmetic(
    stack: torch.Tensor, context: TensorContext, selectivity: float, agree: float, lambda_: float
) -> torch.Tensor:
    """Consensus Task Arithmetic: the summed task vector where at least two experts claim it.

        mask:       m_i = [|tau_i| >= selectivity * |tau_MTL - tau_i| and tau_i is not 0],  tau_MTL = sum_i tau_i
        consensus:  tau = lambda * tau_MTL where sum_i m_i >= agree, else 0

    Paper: Wang et al. 2024, Localizing task information (arXiv 2405.07813), Equations 5 and 6 (TALL masks; agree = 2).
    A single expert has nobody to agree with: with agree = 2 nothing of it is left. Selectivity is tuned for each expert
    in the authors' code, over 0.2 to 0.6; here it is one number.
    """
    total = stack.sum(dim=0)
    claimed = (stack.abs() >= (total - stack).abs_().mul_(selectivity)) & (stack != 0)
    return total.mul_(claimed.sum(dim=0) >= agree).mul_(lambda_)


def between(density: Numbers, gamma: Numbers, per: str) -> Trim:
    """The trim of Breadcrumbs."""
    scope: Scope = "row" if per == "row" else "tensor"
    return Trim(density, skip=gamma, scope=scope)


def largest_of_model(density: float) -> Trim:
    """The trim of Localize-and-Stitch."""
    return Trim(density, scope="model")


KEPT = Parameter("density", 0.85, "share of an expert's entries that stays", 0.0, 1.0, low_is_open=True, by_expert=True)
GAMMA = Parameter("gamma", 0.01, "share of an expert's entries that is removed as too large", 0.0, 1.0, by_expert=True)
PER = Parameter("per", "tensor", "where entries are ranked", choices=("tensor", "row"))
LOCAL = Parameter(
    "density", 0.05, "share of an expert's entries that is stitched, over the model", 0.0, 1.0, low_is_open=True
)
SELECTIVITY = Parameter("selectivity", 0.4, "how much an expert's entry must stand against the others' sum", 0.0)
AGREE = Parameter("agree", 2.0, "number of experts that must claim an entry", 1.0)
METHODS = (
    MergeMethod(
        "breadcrumbs",
        "magnitude sparsification",
        breadcrumbs,
        (KEPT, GAMMA, LAMBDA, WEIGHTS, PER),
        presets={"authors": {"per": "row"}, "mergekit": {}},
        trim=between,
    ),
    MergeMethod(
        "localize_and_stitch",
        "localization",
        localize_and_stitch,
        (LOCAL,),
        spaces=("delta",),
        presets={"authors": {}, "mergebench": {"density": 0.1}},
        trim=largest_of_model,
    ),
    MergeMethod(
        "consensus_task_arithmetic",
        "localization",
        consensus_task_arithmetic,
        (SELECTIVITY, AGREE, LAMBDA),
        spaces=("delta",),
        presets={"authors": {}, "mergebench": {}},
    ),
)
