"""Averages with equal weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergetime.merging.method import Method, TensorContext

# The registry imports this file to check configs, and torch takes seconds to import.
if TYPE_CHECKING:
    import torch


def simple_average(stack: torch.Tensor, context: TensorContext) -> torch.Tensor:
    """The mean of the task vectors: tau = sum_i w_i tau_i with w_i = 1/N, accumulated in fp32.

    Paper: Wortsman et al. 2022, Model soups (arXiv 2203.05482), the uniform soup.
    In adapter space it is PEFT's ``linear`` with weights 1/N: (sum_i sqrt(s_i/N) B_i)(sum_i sqrt(s_i/N) A_i), whose
    cross terms B_i A_j make it another model than the mean of the updates.
    """
    return context.weigh(stack, 1 / len(stack)).sum(dim=0)


METHODS = (Method("simple_average", "averaging", simple_average),)
