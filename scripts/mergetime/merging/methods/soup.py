"""Soups: averages over chosen members."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergetime.merging.method import Method, TensorContext
from mergetime.merging.methods.average import simple_average

# The registry imports this file to check configs, and torch takes seconds to import.
if TYPE_CHECKING:
    import torch


def greedy_soup(stack: torch.Tensor, context: TensorContext) -> torch.Tensor:
    """The mean over the members that a selection names: tau = sum_{i in members} tau_i / |members|, in fp32.

    Paper: Wortsman et al. 2022, Model soups (arXiv 2203.05482), Recipe 1. Members are chosen elsewhere, on validation
    files: experts by descending held-out score, one pass, an expert stays only where it strictly improves the score.
    The recipe keeps an expert on equal score too; its published code (model-soups, main.py) wants the strict
    improvement, as here.
    """
    return simple_average(stack, context)


METHODS = (Method("greedy_soup", "averaging", greedy_soup, needs_members=True),)
