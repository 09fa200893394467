"""Task arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergetime.merging.method import LAMBDA, Method, Parameter, TensorContext

# The registry imports this file to check configs, and torch takes seconds to import.
if TYPE_CHECKING:
    import torch


def task_arithmetic(stack: torch.Tensor, context: TensorContext, lambda_: float, over: str) -> torch.Tensor:
    """The scaled sum of the task vectors: tau = lambda * sum_i tau_i (over: sum), or lambda/N * sum_i tau_i (mean).

    Paper: Ilharco et al. 2023, Editing models with task arithmetic (arXiv 2212.04089), Section 2: addition.
    Peers differ in the normalisation: the paper and MergeBench scale the sum, the default here; mergekit with
    ``normalize`` and studies of merging in the wild scale the mean. Lambda 0 is the base, a negative one forgets.
    In adapter space it is PEFT's ``linear`` with every weight at lambda (or lambda/N).
    """
    return context.weigh(stack, lambda_ if over == "sum" else lambda_ / len(stack)).sum(dim=0)


OVER = Parameter("over", "sum", "what lambda scales: the sum or the mean of the task vectors", choices=("sum", "mean"))
METHODS = (Method("task_arithmetic", "task arithmetic", task_arithmetic, (LAMBDA, OVER)),)
