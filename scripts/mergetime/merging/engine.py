"""Merging a pool of experts: one tensor at a time, block by block, by several threads, from files to files.

Read from the top: :func:`merge` opens the pool, :func:`_merge_deltas` takes its tensors one after another, and
:func:`merged_update` calls the method's function on what it sees of a tensor; in adapter space these are
:func:`_merge_factors` and :func:`merge_stack`. The functions are in ``methods/``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mergetime.architectures.architecture import MATRICES
from mergetime.artifacts.files import NotFiniteTensorError
from mergetime.artifacts.forms import FormName
from mergetime.artifacts.vocabulary import ExtraRows
from mergetime.core.errors import UserError
from mergetime.merging import outputs, registry, rounding
from mergetime.merging.checks import check_settings, check_work
from mergetime.merging.factors import rotated, square
from mergetime.merging.memory import import_torch, keep_freed_memory
from mergetime.merging.method import MergeMethod, TensorContext
from mergetime.merging.opening import open_pool
from mergetime.merging.outputs import Dense, LowRank, Update, factor_keys
from mergetime.merging.pool import OpenPool, TensorStack
from mergetime.merging.preview import preview
from mergetime.merging.surveys import cuts_of, prepared, survey_of, trimmed
from mergetime.merging.tally import Tally, add_norms, check_base, count_entries, square_norm
from mergetime.merging.targets import (
    Target,
    check_copies,
    check_folder,
    opened,
    remove_others,
    target_of,
    tokenizers_that_differ,
)
from mergetime.merging.threads import one_thread_an_operation
from mergetime.merging.trimming import trim_stack
from mergetime.merging.vocabularies import changed_rows
from mergetime.merging.work import ByTensor, Work

if TYPE_CHECKING:
    import torch

Progress = Callable[[int, int], None]
"""Called with the entries merged so far and those in all."""
Blocks = Iterator[tuple[int, "torch.Tensor"]]
"""Blocks of whole rows, each with the position of its first entry."""


def merge(
    experts: Sequence[tuple[str, Path]],
    *,
    method: str,
    params: Mapping[str, Any],
    space: str,
    seed: int | None,
    out: Path,
    preset: str | None = None,
    output: FormName | None = None,
    dtype: str = "float32",
    rank: int | None = None,
    base: Path | None = None,
    base_sha256: str | None = None,
    statistics: Mapping[str, Path] | None = None,
    threads: int = 1,
    device: str = "cpu",
    architecture: Path | None = None,
    tokenizer_from: str | None = None,
    extra_rows: ExtraRows = "refuse",
    by_tensor: ByTensor | None = None,
    progress: Progress | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Merge experts and write the result into the folder ``out``; files appear there only when they are complete.

    Args:
        experts: names and folders, of adapters or of full checkpoints; the names enter the masks of stochastic methods,
            the order does not count.
        method: id in the registry; ``params`` are its parameters, and its ``preset`` and the defaults fill in others.
        space: ``delta`` or ``adapter``.
        seed: a stochastic method needs one.
        output: ``adapter``, ``delta`` or ``checkpoint``; None: an adapter where that is exact, else the task vector.
        dtype: of a task vector or a checkpoint; sums are in fp32 in any case.
        rank: largest rank of an adapter; None: what is exact.
        base: folder of the base; full checkpoints, and writing one, need it.
        base_sha256: the base that the result is for; experts that were trained on another are refused.
        statistics: expert to the file of what was measured on its data, for methods that need it.
        threads: tensors that are merged at a time; the result does not depend on it.
        device: ``cpu`` or ``cuda``.
        architecture: a file that says what the base's tensors are for; None: the package's for its model type.
        tokenizer_from: the expert whose tokenizer a checkpoint gets; None: the base's.
        extra_rows: what is done with rows of experts' vocabularies that the base has not: refuse, drop or keep.
        by_tensor: gives the parameters of a tensor in place of ``params``, where they depend on it; in delta space.
        progress: told after every tensor.
        dry_run: whether only to say what would be done: experts and settings are checked, nothing is merged or written.

    Returns:
        Of a dry run, the fields of :class:`~mergetime.merging.preview.Preview`. Else what :meth:`Tally.summary` says,
        which experts' bases were recorded, the form written, files of weights that were not read, experts whose
        tokenizers differ from the one written, those with other rows of the vocabulary, seconds without imports.

    Raises:
        UserError, ValueError: in one line that names the expert, tensor or parameter.
    """
    import_torch()  # Imports are not part of the time that a merge takes.
    started = time.perf_counter()
    chosen = registry.get(method)
    values, known_space = chosen.validate(params, preset), chosen.check_space(space)
    check_settings(chosen, device, seed)
    with (
        open_pool(
            experts,
            base=base,
            base_sha256=base_sha256,
            statistics=statistics,
            device=device,
            architecture=architecture,
            extra_rows=extra_rows,
        ) as pool,
        one_thread_an_operation(),
    ):
        work = Work(pool, chosen, values, seed or 0, known_space, by_tensor=by_tensor)
        check_work(work, statistics)
        target = target_of(work, out, output, dtype, rank, tokenizer_from)
        check_folder(out, filter(None, [base, *(folder for _, folder in experts)]))
        # What can be refused is refused before an earlier merge is written over.
        check_copies(work, target)
        tokenizers = tokenizers_that_differ(work, target)
        if dry_run:
            return asdict(preview(work, target, threads, tokenizers))
        keep_freed_memory()
        out.mkdir(parents=True, exist_ok=True)
        merge_tensors = _merge_factors if known_space == "adapter" else _merge_deltas
        tally = merge_tensors(work, target, threads, progress)
        remove_others(target)
    facts = {
        "architecture": pool.architecture.name,
        "base_recorded": pool.base_recorded,
        "output": target.form,
        "left_aside": pool.left_aside,
        "tokenizers": tokenizers,
        "vocabulary": changed_rows(pool),
    }
    return tally.summary(pool.names) | facts | {"seconds": round(time.perf_counter() - started, 3)}


def _merge_deltas(work: Work, target: Target, threads: int, progress: Progress | None) -> Tally:
    """Merge in delta space, every tensor by itself."""
    pool, work = work.pool, prepared(work)
    with opened(work, target) as write:

        def task(name: str) -> Tally:
            of_tensor = work.of_tensor(name) if name in pool.shapes else work
            with _explained(of_tensor, name):
                if name not in pool.shapes:
                    return Tally(error=write(name, None))
                stack = replace(pool.tensor(name), whole=work.method.whole)
                tally = Tally(entries=stack.entries)
                update = merged_update(of_tensor, stack, tally)
                if isinstance(update, LowRank):
                    tally.merged = square(update.left, update.right)
                tally.error = write(name, update)
                # A norm that overflows, though every entry is finite.
                if not math.isfinite(tally.merged):
                    raise NotFiniteTensorError(name)
                return tally

        beside = pool.base.keys_kept if target.form == "checkpoint" and pool.base else ()
        return _tallied_by_threads(task, pool, dict.fromkeys([*pool.shapes, *beside]), threads, progress)


@contextmanager
def _explained(work: Work, name: str) -> Iterator[None]:
    """Where a result is not finite, and so not written, the base or the method is named, whichever it comes from."""
    try:
        yield
    except NotFiniteTensorError as error:
        check_base(work.pool, name)
        raise UserError(
            f"{work.method.id}: {error.tensor} is not finite after merging with {dict(work.params)}"
        ) from error


def merged_update(work: Work, stack: TensorStack, tally: Tally) -> Update:
    """The merged update of a tensor; the tally gets the experts' norms, and for dense updates all else."""
    method = work.method
    if work.keeps(stack.name):
        return _kept(stack, tally)
    if method.level == "entries":
        return Dense(_tallied(_finished(work, stack, _entries(work, stack, tally)), tally), stack.shape)
    if method.level == "experts":
        return _weighted(work, stack, method.function, tally)
    if not work.takes_for_matrix(stack.name):
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
        banks = ((start, block.double().transpose(0, 1)) for _, start, block in _blocks(stack, tally))
        return Dense(_tallied(_by_matrix(work, stack, method.function, banks), tally), stack.shape)
    context = work.context(stack, rounding=tuple(map(rounding.of, stack.tensors)))
    matrix = work.call(method.function, _matrices(stack, tally), context).float()
    return Dense(_tallied(iter([(0, matrix)]), tally), stack.shape)


def _kept(stack: TensorStack, tally: Tally) -> LowRank:
    """An update of nothing, for a table that stays that of the base; the tally gets the experts' norms."""
    import torch

    for _ in _blocks(stack, tally):
        pass
    outputs, inputs = stack.shape
    return LowRank(torch.zeros(outputs, 0, device=stack.pool.device), torch.zeros(0, inputs, device=stack.pool.device))


def _entries(work: Work, stack: TensorStack, tally: Tally) -> Blocks:
    """The merged blocks of a method that works entry by entry."""
    method = work.method
    cuts = cuts_of(work, stack)
    measured = work.pool.statistic(stack.name) if method.statistics else None
    if method.statistics and measured is None and stack.role in MATRICES:
        raise UserError(f"{method.id}: {stack.name} has no {method.statistics}; measure the experts again")
    context = work.context(stack, survey=survey_of(work, stack))
    # Gram matrices are of a layer's inputs, the columns of [outputs, inputs].
    turned = method.statistics == "gram" and stack.transposed
    for (first, end), start, block in _blocks(stack, tally):
        kept = trimmed(work, stack, cuts, start, block)
        kept = kept.mT if turned else kept
        statistics = measured[:, first:end] if measured is not None and measured.shape[1:] == stack.shape else measured
        merged = work.call(method.function, kept, replace(context, start=start, statistics=statistics))
        merged = merged.mT.contiguous() if turned else merged
        count_entries(tally, block, merged)
        yield start, merged


def _finished(work: Work, stack: TensorStack, blocks: Blocks) -> Blocks:
    """The merged blocks after the method's finish, which takes whole matrices."""
    finish = work.method.finish
    if finish is None or stack.role not in MATRICES:
        return blocks
    if stack.role == "expert_bank":
        return _by_matrix(work, stack, finish, blocks)
    matrix = Dense(((start, block.clone()) for start, block in blocks), stack.shape).matrix()
    return iter([(0, work.call(finish, matrix, work.context(stack)))])


def _by_matrix(work: Work, stack: TensorStack, function: Callable[..., Any], banks: Blocks) -> Blocks:
    """Blocks of a bank [experts of the model, m, n]: what the function makes of every matrix by itself."""
    import torch

    def merged(place: int, matrix: torch.Tensor) -> torch.Tensor:
        noise = [rounding.of(tensor[place]) for tensor in stack.tensors] if work.method.level == "spectrum" else ()
        context = work.context(stack, shape=stack.shape[1:], rounding=tuple(noise))
        result: torch.Tensor = work.call(function, matrix, context).float()
        return result

    for start, bank in banks:
        first = start // math.prod(stack.shape[1:])
        yield start, torch.stack([merged(first + place, matrix) for place, matrix in enumerate(bank)])


def _weighted(work: Work, stack: TensorStack, function: Callable[..., Any], tally: Tally) -> Update:
    """The experts' weighted sum: factors side by side, or block by block."""
    import torch

    gram = stack.gram(with_base=work.method.wants_base(work.params)) if work.method.needs_gram else None
    weights: torch.Tensor = work.call(function, work.context(stack, gram=gram))
    if stack.lefts and len(weights) == len(stack.lefts):
        tally.squares = _squares(stack)
        left = torch.cat([left * float(weight) for left, weight in zip(stack.lefts, weights, strict=True)], dim=1)
        return LowRank(left, torch.cat(list(stack.rights)))

    def blocks() -> Blocks:
        of_experts = weights[: len(work.pool.names)].to(work.pool.device, torch.float32)
        for (first, end), start, block in _blocks(stack, tally):
            merged = (of_experts @ block.flatten(1)).view(block.shape[1:])
            if len(weights) > len(of_experts):
                merged += float(weights[-1]) * stack.base_rows(first, end).view(merged.shape)
            yield start, merged

    return Dense(_tallied(blocks(), tally), stack.shape)


def _matrices(stack: TensorStack, tally: Tally) -> torch.Tensor:
    """The task vectors as whole matrices in float64 [experts, m, n]."""
    import torch

    whole = torch.empty((len(stack.pool.names), *stack.shape), dtype=torch.float64, device=stack.pool.device)
    for (first, end), _, block in _blocks(stack, tally):
        whole[:, first:end] = block
    return whole


def _blocks(stack: TensorStack, tally: Tally) -> Iterator[tuple[tuple[int, int], int, torch.Tensor]]:
    """The blocks [experts, rows, ...] with their rows and first entry; the tally gets the experts' norms."""
    for rows, (start, block) in zip(stack.starts(), stack.blocks(), strict=True):
        add_norms(tally, stack, block)
        yield rows, start, block


def _tallied(blocks: Blocks, tally: Tally) -> Blocks:
    """The merged blocks; the tally gets their norm."""
    for start, block in blocks:
        tally.merged += square_norm(block)
        yield start, block


def _squares(stack: TensorStack) -> list[float]:
    """The experts' squared norms, from their factors."""
    return [square(left, right) for left, right in zip(stack.lefts, stack.rights, strict=True)]


def _merge_factors(work: Work, target: Target, threads: int, progress: Progress | None) -> Tally:
    """Merge in adapter space: A and B of every module by themselves."""
    import torch

    pool = work.pool
    with outputs.factors(pool, target.folder) as write:

        def task(name: str) -> Tally:
            module = name.removesuffix(".weight")
            pairs = [adapter.factors(module) for adapter in pool.adapters]
            scalings = tuple(adapter.scaling(module) for adapter in pool.adapters)
            tally, merged = Tally(), []
            factors: tuple[Literal["A", "B"], ...] = ("A", "B")
            kept = work.keeps(name)
            for key, factor, tensors in zip(factor_keys(pool, name), factors, zip(*pairs, strict=True), strict=True):
                stack = torch.stack(tensors).to(pool.device)
                context = TensorContext(key, pool.names, work.seed, scalings, factor, tuple(stack.shape[1:]))
                result = torch.zeros_like(stack[0]) if kept else merge_stack(work.method, stack, context, work.params)
                count_entries(tally, stack, result)
                merged.append(result)
            tally.entries = tally.counted
            tally.squares = [scaling**2 * square(b, a) for (a, b), scaling in zip(pairs, scalings, strict=True)]
            tally.merged = square(merged[1], merged[0])
            with _explained(work, name):
                write(name, merged[0], merged[1])
            return tally

        return _tallied_by_threads(task, pool, pool.shapes, threads, progress)


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
    kept = trim_stack(stack, call(method.trim), context.experts) if method.trim is not None else stack
    if method.survey is not None and call(method.survey[1]):
        context = replace(context, survey=call(method.survey[0], kept, context))
    entries: torch.Tensor = call(method.function, kept, context)
    return entries if method.finish is None or stack.dim() != 3 else call(method.finish, entries, context)


def _tallied_by_threads(
    task: Callable[[str], Tally], pool: OpenPool, names: Iterable[str], threads: int, progress: Progress | None
) -> Tally:
    """Do every tensor's task; the tallies are added in the tensors' order, whoever finishes first."""
    import torch

    total, whole = Tally(), sum(math.prod(shape) for shape in pool.shapes.values())
    done = 0
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as executor:
        try:
            for tally in executor.map(task, names):
                total.add(tally)
                done += tally.entries
                if progress:
                    progress(done, whole)
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise
    return total
