"""What is known of a tensor, or of the model, before its blocks are merged: cuts of trimming, sums of a survey."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mergetime.merging.pool import TensorStack
from mergetime.merging.tally import Tally, add_norms
from mergetime.merging.trimming import Cuts, NotFiniteError, chained, find, trim_rows
from mergetime.merging.work import Work

if TYPE_CHECKING:
    import torch

SAMPLE = 1 << 14
"""Entries of an expert that are sampled to begin the search for a threshold."""


def prepared(work: Work) -> Work:
    """The work with what is ranked or surveyed over the whole model."""
    pool = work.pool
    ranked = [name for name in pool.shapes if work.ranks(name)]
    if work.trim and work.trim.scope == "model":
        import torch

        counted = [name for name in ranked if not work.trim.changed_only or _is_changed(pool.tensor(name))] or ranked
        size = sum(math.prod(pool.shapes[name]) for name in counted)
        step = size / (32 * SAMPLE)
        samples = [pool.tensor(name).sample(step) for name in counted]
        sample = torch.cat(samples, dim=1) if samples else torch.zeros(len(pool.names), 0)
        work = replace(work, cuts=_cuts_over(work, counted, sample, size))
    if work.surveyed == "model":
        total: Any = sum(_summed(work, pool.tensor(name)) for name in ranked)
        work = replace(work, survey=total)
    return work


def _is_changed(stack: TensorStack) -> bool:
    """Whether any expert differs from the base in this tensor."""
    return any(bool(block.any()) for _, block in stack.blocks())


def survey_of(work: Work, stack: TensorStack) -> torch.Tensor | None:
    """The sum of the method's survey over its scope, for the blocks of this tensor; None: it needs none."""
    return _summed(work, stack) if work.surveyed == "tensor" else work.survey


def cuts_of(work: Work, stack: TensorStack) -> Cuts | None:
    """Where the tensor's entries are cut off; None: nowhere, or in every row by itself."""
    if work.trim is None or work.trim.scope == "row":
        return None
    if work.trim.scope == "model":
        return work.cuts
    return _cuts_over(work, [stack.name], stack.sample(stack.entries / SAMPLE), stack.entries)


def trimmed(work: Work, stack: TensorStack, cuts: Cuts | None, start: int, block: torch.Tensor) -> torch.Tensor:
    """What of a block [experts, rows, ...] reaches the method, by the cuts of its tensor."""
    if work.trim is None:
        return block
    if cuts is None:
        return trim_rows(block, work.trim, work.pool.names)
    return cuts.apply(block, (stack.name, start))


def _cuts_over(work: Work, names: Iterable[str], sample: torch.Tensor, size: int) -> Cuts:
    """The cuts over some tensors, with (tensor, start) as keys."""
    assert work.trim is not None
    streams = [(name, lambda name=name: work.pool.tensor(name).blocks()) for name in names]
    try:
        return find(lambda: chained(streams), sample, size, work.trim, work.pool.names)
    except NotFiniteError:
        for name in names:
            stack = work.pool.tensor(name)
            for _, block in stack.blocks():
                add_norms(Tally(), stack, block)
        raise


def _summed(work: Work, stack: TensorStack) -> Any:
    """The method's survey, summed over the blocks of a tensor."""
    assert work.method.survey is not None
    cuts = cuts_of(work, stack)
    total: Any = 0.0
    for start, block in stack.blocks():
        kept = trimmed(work, stack, cuts, start, block)
        total = total + work.call(work.method.survey[0], kept, work.context(stack, start=start))
    return total
