"""The merged update of one tensor, from what the method sees of it: weights, entries, singular values, or factors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mergetime.architectures.architecture import MATRICES
from mergetime.core.errors import UserError
from mergetime.merging.factors import rotated, square
from mergetime.merging.method import MergeMethod, Scope, Space, TensorContext, Trim
from mergetime.merging.outputs import Dense, LowRank, Update
from mergetime.merging.pool import OpenPool, TensorStack
from mergetime.merging.tally import Tally, add_norms, count_entries, square_norm
from mergetime.merging.trimming import Cuts, NotFiniteError, chained, find, trim_rows, trim_stack

if TYPE_CHECKING:
    import torch

SAMPLE = 1 << 14
"""Entries of an expert that are sampled to begin the search for a threshold."""


@dataclass(frozen=True)
class Work:
    """What stays the same for every tensor of a merge; survey and cuts are of delta space."""

    pool: OpenPool
    method: MergeMethod
    params: Mapping[str, Any]
    seed: int
    space: Space
    survey: torch.Tensor | None = None
    cuts: Cuts | None = None

    @cached_property
    def trim(self) -> Trim | None:
        """What of each expert reaches the method; None: everything."""
        if self.method.trim is None:
            return None
        trim: Trim = self.method.call(self.method.trim, params=self.params)
        return None if trim.keep >= 1 and not trim.skip else trim

    @cached_property
    def surveyed(self) -> Scope | None:
        """Where the method's survey is summed; None: it needs none."""
        if self.method.survey is None:
            return None
        scope: Scope | None = self.method.call(self.method.survey[1], params=self.params)
        return scope

    def context(self, stack: TensorStack, **more: Any) -> TensorContext:
        """The context of a tensor."""
        given = {"shape": stack.shape, "survey": self.survey, **more}
        return TensorContext(stack.name, self.pool.names, self.seed, **given)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call one of the method's functions with its parameters."""
        return self.method.call(function, *arguments, params=self.params)


def merge_stack(
    method: MergeMethod, stack: torch.Tensor, context: TensorContext, params: Mapping[str, Any]
) -> torch.Tensor:
    """Merge the task vectors of one tensor that is in memory: [experts, ...] fp32 to [...].

    In adapter space the stack is one LoRA factor. Model scope means this tensor.
    """
    import torch

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        return method.call(function, *arguments, params=params)

    context = context if context.shape else replace(context, shape=tuple(stack.shape[1:]))
    if method.level == "experts":
        if method.needs_gram and context.gram is None:
            rows = stack.flatten(1).double()
            context = replace(context, gram=rows @ rows.T)
        weights = call(method.function, context)[: len(stack)]
        return context.weigh(stack, weights.tolist()).sum(dim=0)
    if method.level == "spectrum":
        merged: torch.Tensor = call(method.function, stack.double(), context)
        return merged.to(stack.dtype)
    if method.level == "factors":
        whole = torch.eye(stack.shape[-1], dtype=stack.dtype)
        left, right = call(method.function, list(stack), [whole] * len(stack), context)
        product: torch.Tensor = left @ right
        return product
    trimmed = stack
    if method.trim is not None:
        trimmed = trim_stack(stack, call(method.trim))
    if method.survey is not None and call(method.survey[1]):
        context = replace(context, survey=call(method.survey[0], trimmed, context))
    entries: torch.Tensor = call(method.function, trimmed, context)
    return entries if method.finish is None or stack.dim() != 3 else call(method.finish, entries, context)


def prepared(work: Work) -> Work:
    """The work with what is ranked or surveyed over the whole model."""
    pool = work.pool
    if work.trim and work.trim.scope == "model":
        import torch

        size = sum(math.prod(shape) for shape in pool.shapes.values())
        step = size / (32 * SAMPLE)
        sample = torch.cat([pool.tensor(name).sample(step) for name in pool.shapes], dim=1)
        work = replace(work, cuts=_found(work, pool.shapes, sample, size))
    if work.surveyed == "model":
        total: Any = sum(_survey(work, pool.tensor(name)) for name in pool.shapes)
        work = replace(work, survey=total)
    return work


def _found(work: Work, names: Iterable[str], sample: torch.Tensor, size: int) -> Cuts:
    """The cuts over some tensors, with (tensor, start) as keys."""
    assert work.trim is not None
    streams = [(name, lambda name=name: work.pool.tensor(name).blocks()) for name in names]
    try:
        return find(lambda: chained(streams), sample, size, work.trim)
    except NotFiniteError:
        for name in names:
            stack = work.pool.tensor(name)
            for _, block in stack.blocks():
                add_norms(Tally(), stack, block)
        raise


def _survey(work: Work, stack: TensorStack) -> Any:
    """The method's survey, summed over the blocks of a tensor."""
    assert work.method.survey is not None
    cuts = _cuts(work, stack)
    total: Any = 0.0
    for start, block in stack.blocks():
        kept = _trimmed(work, stack, cuts, start, block)
        total = total + work.call(work.method.survey[0], kept, work.context(stack, start=start))
    return total


def _cuts(work: Work, stack: TensorStack) -> Cuts | None:
    if work.trim is None or work.trim.scope == "row":
        return None
    if work.trim.scope == "model":
        return work.cuts
    return _found(work, [stack.name], stack.sample(stack.entries / SAMPLE), stack.entries)


def _trimmed(work: Work, stack: TensorStack, cuts: Cuts | None, start: int, block: torch.Tensor) -> torch.Tensor:
    if work.trim is None:
        return block
    if cuts is None:
        return trim_rows(block, work.trim)
    return cuts.apply(block, (stack.name, start))


def merged_update(work: Work, stack: TensorStack, tally: Tally) -> Update:
    """The merged update of a tensor; the tally gets the experts' norms, and for dense updates all else."""
    method = work.method
    if method.level == "entries":
        return Dense(_finished(work, stack, _entries(work, stack, tally), tally), stack.shape)
    if method.level == "experts":
        return _weighted(work, stack, method.function, tally)
    if stack.role not in MATRICES:
        assert method.plain is not None
        return _weighted(work, stack, method.plain, tally)
    if method.level == "factors":
        tally.squares = _squares(stack)
        left, right = work.call(method.function, stack.lefts, stack.rights, work.context(stack))
        return LowRank(left, right)
    if stack.lefts:
        tally.squares = _squares(stack)
        columns, cores, rows = rotated(stack.lefts, stack.rights)
        core = work.call(method.function, cores, work.context(stack))
        return LowRank((columns @ core).float(), rows.float())
    if stack.role == "expert_bank":
        return Dense(_tallied(_bank(work, stack, tally), tally), stack.shape)
    matrix = work.call(method.function, _matrices(work, stack, tally), work.context(stack)).float()
    return Dense(_tallied([(0, matrix)], tally), stack.shape)


def _weighted(work: Work, stack: TensorStack, function: Callable[..., Any], tally: Tally) -> Update:
    """The experts' weighted sum: factors side by side, or block by block."""
    import torch

    gram = stack.gram(with_base=work.method.wants_base(work.params)) if work.method.needs_gram else None
    weights: torch.Tensor = work.call(function, work.context(stack, gram=gram))
    if stack.lefts and len(weights) == len(stack.lefts):
        tally.squares = _squares(stack)
        left = torch.cat([own * float(weight) for own, weight in zip(stack.lefts, weights, strict=True)], dim=1)
        return LowRank(left, torch.cat(list(stack.rights)))

    def blocks() -> Iterator[tuple[int, torch.Tensor]]:
        own = weights[: len(work.pool.names)].to(work.pool.device, torch.float32)
        for (first, end), (start, block) in zip(stack.starts(), stack.blocks(), strict=True):
            add_norms(tally, stack, block)
            merged = (own @ block.flatten(1)).view(block.shape[1:])
            if len(weights) > len(own):
                merged += float(weights[-1]) * stack.base_rows(first, end).view(merged.shape)
            yield start, merged

    return Dense(_tallied(blocks(), tally), stack.shape)


def _entries(work: Work, stack: TensorStack, tally: Tally) -> Iterator[tuple[int, torch.Tensor]]:
    """The merged blocks of a method that works entry by entry."""
    cuts = _cuts(work, stack)
    survey = _survey(work, stack) if work.surveyed == "tensor" else work.survey
    measured = work.pool.statistic(stack.name) if work.method.statistics else None
    if work.method.statistics and measured is None and stack.role in MATRICES:
        raise UserError(f"{work.method.id}: {stack.name} has no {work.method.statistics}; measure the experts again")
    context = work.context(stack, survey=survey)
    # Gram matrices are of a layer's inputs, the columns of [outputs, inputs].
    turned = work.method.statistics == "gram" and stack.transposed
    for (first, end), (start, block) in zip(stack.starts(), stack.blocks(), strict=True):
        add_norms(tally, stack, block)
        kept = _trimmed(work, stack, cuts, start, block)
        own = measured[:, first:end] if measured is not None and measured.shape[1:] == stack.shape else measured
        kept = kept.mT if turned else kept
        merged = work.call(work.method.function, kept, replace(context, start=start, statistics=own))
        merged = merged.mT.contiguous() if turned else merged
        count_entries(tally, block, merged)
        yield start, merged


def _finished(
    work: Work, stack: TensorStack, blocks: Iterator[tuple[int, torch.Tensor]], tally: Tally
) -> Iterator[tuple[int, torch.Tensor]]:
    if work.method.finish is None or stack.role not in MATRICES:
        return _tallied(blocks, tally)
    if stack.role == "expert_bank":
        return _tallied(_finished_bank(work, stack, blocks), tally)
    matrix = Dense(((start, block.clone()) for start, block in blocks), stack.shape).matrix()
    return _tallied([(0, work.call(work.method.finish, matrix, work.context(stack)))], tally)


def _bank(work: Work, stack: TensorStack, tally: Tally) -> Iterator[tuple[int, torch.Tensor]]:
    """The merged blocks of a bank [experts of the model, m, n] at the spectrum level, every matrix by itself."""
    import torch

    context = work.context(stack, shape=stack.shape[1:])
    for start, block in stack.blocks():
        add_norms(tally, stack, block)
        matrices = block.double().unbind(dim=1)
        yield start, torch.stack([work.call(work.method.function, own, context).float() for own in matrices])


def _finished_bank(
    work: Work, stack: TensorStack, blocks: Iterator[tuple[int, torch.Tensor]]
) -> Iterator[tuple[int, torch.Tensor]]:
    """The merged blocks of a bank, every matrix finished by itself."""
    import torch

    assert work.method.finish is not None
    context = work.context(stack, shape=stack.shape[1:])
    for start, block in blocks:
        yield start, torch.stack([work.call(work.method.finish, matrix, context) for matrix in block])


def _tallied(blocks: Iterable[tuple[int, torch.Tensor]], tally: Tally) -> Iterator[tuple[int, torch.Tensor]]:
    for start, block in blocks:
        tally.merged += square_norm(block)
        yield start, block


def _squares(stack: TensorStack) -> list[float]:
    return [square(left, right) for left, right in zip(stack.lefts, stack.rights, strict=True)]


def _matrices(work: Work, stack: TensorStack, tally: Tally) -> torch.Tensor:
    """The task vectors as whole matrices in float64 [experts, m, n]."""
    import torch

    whole = torch.empty((len(stack.pool.names), *stack.shape), dtype=torch.float64, device=stack.pool.device)
    for (first, end), (_, block) in zip(stack.starts(), stack.blocks(), strict=True):
        add_norms(tally, stack, block)
        whole[:, first:end] = block
    return whole
