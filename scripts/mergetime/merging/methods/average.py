"""Averages and sums: one weight an expert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mergetime.merging.method import LAMBDA, TABLES, WEIGHTS, MergeMethod, Parameter, TensorContext

# The registry imports this file to check configs, and torch takes seconds to import.
if TYPE_CHECKING:
    import torch


def simple_average(context: TensorContext) -> torch.Tensor:
    """The mean of the task vectors: tau = sum_i w_i tau_i with w_i = 1/N, accumulated in fp32.

    Paper: Wortsman et al. 2022, Model soups (arXiv 2203.05482), the uniform soup.
    In adapter space it is PEFT's ``linear`` with weights 1/N: (sum_i sqrt(s_i/N) B_i)(sum_i sqrt(s_i/N) A_i), whose
    cross terms B_i A_j make it another model than the mean of the updates.
    """
    return task_arithmetic(context, 1.0, "mean", None)


def weighted_average(context: TensorContext, weights: Mapping[str, float] | None, over: str) -> torch.Tensor:
    """The weighted mean: tau = sum_i w_i tau_i / sum_i w_i (over: mean), or the weighted sum (sum).

    Paper: Wortsman et al. 2022, Model soups (arXiv 2203.05482), Section 2, with learned or chosen weights.
    mergekit's ``linear`` is the normalised one. Taken of the task vectors, it is that of the weights where the weights
    sum to 1; a sum that is not 1 scales the task vectors here and the whole model, base included, in mergekit.
    """
    return task_arithmetic(context, 1.0, over, weights)


def task_arithmetic(
    context: TensorContext, lambda_: float, over: str, weights: Mapping[str, float] | None
) -> torch.Tensor:
    """The scaled sum of the task vectors: tau = lambda * sum_i w_i tau_i (over: sum), divided by sum_i w_i (mean).

    Paper: Ilharco et al. 2023, Editing models with task arithmetic (arXiv 2212.04089), Section 2: addition.
    Peers differ in the normalisation: the paper and MergeBench scale the sum, the default here; mergekit with
    ``normalize`` and studies of merging in the wild scale the mean. Lambda 0 is the base, a negative one forgets.
    In adapter space it is PEFT's ``linear`` with every weight at lambda (or lambda/N).
    """
    import torch

    wanted = torch.tensor(context.weights(weights), dtype=torch.float64)
    total = float(wanted.sum()) if over == "mean" else 1.0
    if total == 0.0:
        raise ValueError("weights: they sum to 0, so their mean does not exist; scale the sum instead")
    return lambda_ * wanted / total


def greedy_soup(context: TensorContext) -> torch.Tensor:
    """The mean over the members that a selection names: tau = sum_{i in members} tau_i / |members|, in fp32.

    Paper: Wortsman et al. 2022, Model soups (arXiv 2203.05482), Recipe 1. Members are chosen elsewhere, on validation
    files: experts by descending held-out score, one pass, an expert stays only where it strictly improves the score.
    The recipe keeps an expert on equal score too; its published code (model-soups, main.py) wants the strict
    improvement, as here.
    """
    return simple_average(context)


OVER = Parameter("over", "sum", "what lambda scales: the sum or the mean of the task vectors", choices=("sum", "mean"))
MEAN = Parameter("over", "mean", "whether the weighted task vectors are averaged or summed", choices=("mean", "sum"))
FAMILY = "averaging"
METHODS = (
    MergeMethod("simple_average", FAMILY, simple_average, level="experts"),
    MergeMethod(
        "weighted_average", FAMILY, weighted_average, (WEIGHTS, MEAN), level="experts", presets={"mergekit": {}}
    ),
    MergeMethod(
        "task_arithmetic",
        "task arithmetic",
        task_arithmetic,
        (LAMBDA, OVER, WEIGHTS, TABLES),
        level="experts",
        presets={
            "authors": {},
            "mergekit": {},
            "mergebench": {"tables": "kept"},
            "in_the_wild": {"over": "mean"},
        },
        remarks={
            "authors": "The authors' code chooses lambda on validation data.",
            "mergebench": "MergeBench computes in bfloat16, here sums are in fp32.",
        },
    ),
    MergeMethod("greedy_soup", FAMILY, greedy_soup, level="experts", needs_members=True),
)
