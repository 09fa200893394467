"""Methods that keep parts of each expert: Breadcrumbs, Localize-and-Stitch, Consensus Task Arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mergetime.merging.method import (
    LAMBDA,
    RANKED_TABLES,
    TABLES,
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


def breadcrumbs(
    stack: torch.Tensor, context: TensorContext, lambda_: float, weights: Mapping[str, float] | None
) -> torch.Tensor:
    """Model Breadcrumbs: the largest and the smallest entries removed, what lies between summed.

        mask:   of n entries by falling magnitude, the first floor(gamma n) go, the next floor(density n) stay;
                where these are more than n, fewer go (excess: gamma) or fewer stay (density)
        merge:  tau = lambda * sum_i w_i t_i

    Paper: Davari and Belilovsky 2024, Model Breadcrumbs (arXiv 2312.06795), Section 3: layer-wise masks.
    mergekit ranks within a tensor and lets fewer go, the defaults here; the authors' code ranks within a row (per: row)
    and lets fewer stay (excess: density). The default density keeps 85 %; the authors keep about 15 %.
    """
    return context.scale(context.weigh(stack, context.weights(weights)).sum(dim=0), lambda_)


def localize_and_stitch(stack: torch.Tensor, context: TensorContext, overlap: str) -> torch.Tensor:
    """Localize-and-Stitch without data: every expert's largest entries in the whole model, averaged where they overlap.

        localize:  t_i = tau_i where |tau_i| is among the k = max(1, floor(density n)) largest of the model, else 0
        stitch:    tau = sum_i t_i / #{i: t_i is not 0}, 0 where nobody kept

    Paper: He et al. 2025, Localize-and-Stitch (arXiv 2408.13656), Section 3, the dataless variant; no coefficient.
    The paper suggests 5 %; MergeBench searches 10 to 50 % for larger models.
    n counts the tensors that an expert changes, so that a full checkpoint into which an adapter was merged gives what
    the adapter does (counted: changed), or all of the experts' tensors (all). Peers differ; each difference is a
    parameter.
    tied: the authors' code keeps what is larger than the k-th magnitude, k - 1 entries or fewer; MergeBench keeps all
    that equal it.
    overlap: MergeBench divides by 2 where the last of the other experts has kept the entry, too, else by 1 (last).
    tables: the authors' code and MergeBench leave embeddings and head as they are.
    """
    import torch

    kept = stack != 0
    if overlap == "all":
        return stack.sum(dim=0).div_(kept.sum(dim=0).clamp_(min=1))
    by_name = sorted(range(len(stack)), key=context.experts.__getitem__)
    others = [next((other for other in reversed(by_name) if other != place), None) for place in range(len(stack))]
    shared = [torch.zeros_like(kept[0]) if other is None else kept[other] for other in others]
    return stack.div(1 + torch.stack(shared).to(stack.dtype)).sum(dim=0)


def consensus_task_arithmetic(
    stack: torch.Tensor, context: TensorContext, selectivity: float, claim: str, agree: float, lambda_: float
) -> torch.Tensor:
    """Consensus Task Arithmetic: the summed task vector where at least two experts claim it.

        mask:       m_i = [|tau_i| >= selectivity * |tau_MTL - tau_i| and tau_i is not 0],  tau_MTL = sum_i tau_i
        consensus:  tau = lambda * tau_MTL where sum_i m_i >= agree, else 0

    Paper: Wang et al. 2024, Localizing task information (arXiv 2405.07813), Equations 5 and 6 (TALL masks; agree = 2).
    A single expert has nobody to agree with: with agree = 2 nothing of it is left. Selectivity is tuned for each expert
    in the authors' code, over 0.2 to 0.6; here it is one number. Their code and MergeBench want |tau_i| to be more than
    the other side, not at least that (claim: more).
    """
    total = stack.sum(dim=0)
    others = (total - stack).abs_().mul_(selectivity)
    claimed = stack.abs() > others if claim == "more" else (stack.abs() >= others) & (stack != 0)
    return total.mul_(claimed.sum(dim=0) >= agree).mul_(lambda_)


def between(density: Numbers, gamma: Numbers, per: Scope, excess: str) -> Trim:
    """The trim of Breadcrumbs."""
    return Trim(density, skip=gamma, scope=per, yields="keep" if excess == "density" else "skip")


def largest_of_model(density: float, tied: Tied, counted: str) -> Trim:
    """The trim of Localize-and-Stitch."""
    return Trim(density, scope="model", tied=tied, changed_only=counted == "changed")


KEPT = Parameter("density", 0.85, "share of an expert's entries that stays", 0.0, 1.0, low_is_open=True, by_expert=True)
GAMMA = Parameter("gamma", 0.01, "share of an expert's entries that is removed as too large", 0.0, 1.0, by_expert=True)
PER = Parameter("per", "tensor", "where entries are ranked", choices=("tensor", "row"))
EXCESS = Parameter(
    "excess",
    "gamma",
    "what gives way where density and gamma exceed 1 together: fewer entries go (gamma), or fewer stay (density)",
    choices=("gamma", "density"),
)
LOCAL = Parameter(
    "density", 0.05, "share of an expert's entries that is stitched, over the model", 0.0, 1.0, low_is_open=True
)
OVERLAP = Parameter(
    "overlap",
    "all",
    "what an entry that several keep is divided by: the number of all of them, or 2 where the last of the others (by "
    "name) keeps it",
    choices=("all", "last"),
)
COUNTED = Parameter(
    "counted",
    "changed",
    "of which tensors density is a share: those that an expert changes, or all",
    choices=("changed", "all"),
)
CLAIM = Parameter(
    "claim",
    "at_least",
    "whether an entry must be at least selectivity times the others' sum, or more",
    choices=("at_least", "more"),
)
SELECTIVITY = Parameter("selectivity", 0.4, "how much an expert's entry must stand against the others' sum", 0.0)
AGREE = Parameter("agree", 2.0, "number of experts that must claim an entry", 1.0)
METHODS = (
    MergeMethod(
        "breadcrumbs",
        "magnitude sparsification",
        breadcrumbs,
        (KEPT, GAMMA, LAMBDA, WEIGHTS, PER, EXCESS),
        presets={
            "authors": {"density": 0.15, "gamma": 0.006, "per": "row", "excess": "density"},
            "mergekit": {"density": 1.0},
        },
        remarks={
            "authors": "Density and gamma are those at which the authors' search begins, as does lambda at 0.2. Where "
            "floor(density n) is 0 their code keeps nothing of a row; here 1 entry stays.",
            "mergekit": "Among equal magnitudes mergekit keeps whichever its sort happens to put first, and nothing "
            "where floor(density n) is 0; here 1 entry stays.",
        },
        trim=between,
    ),
    MergeMethod(
        "localize_and_stitch",
        "localization",
        localize_and_stitch,
        (LOCAL, TIED, OVERLAP, COUNTED, RANKED_TABLES),
        spaces=("delta",),
        presets={
            "authors": {"tied": "none", "tables": "kept"},
            "mergebench": {
                "density": 0.1,
                "tied": "all",
                "overlap": "last",
                "counted": "all",
                "tables": "head_ranked",
            },
        },
        remarks={
            "authors": "The authors' code for language models takes the layers of the encoder alone, and so leaves out "
            "the norms outside of them, too.",
            "mergebench": "MergeBench computes in bfloat16, here sums are in fp32; its experts come in an order of "
            "their own, here by name. Where an expert changes fewer than k entries, MergeBench counts those that "
            "it does not change as kept, too. Of adapters, k is a share of the tensors that they adapt.",
        },
        trim=largest_of_model,
    ),
    MergeMethod(
        "consensus_task_arithmetic",
        "localization",
        consensus_task_arithmetic,
        (SELECTIVITY, CLAIM, AGREE, LAMBDA, TABLES),
        spaces=("delta",),
        presets={
            "authors": {"claim": "more"},
            "mergebench": {"selectivity": 0.2, "claim": "more", "tables": "kept"},
        },
        remarks={
            "authors": "The authors' code chooses a selectivity for every expert, and lambda, on validation data.",
            "mergebench": "MergeBench computes in bfloat16, here sums are in fp32.",
        },
    ),
)
