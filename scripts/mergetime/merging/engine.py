"""Merging a pool of experts: one tensor at a time, block by block, by several threads, from files to files."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mergetime.errors import UserError
from mergetime.merging import outputs, registry
from mergetime.merging.checkpoints import CONFIG, INDEX, MERGED
from mergetime.merging.factors import rotated, square
from mergetime.merging.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, DTYPES, TASK_VECTOR, read_json
from mergetime.merging.method import Method, Scope, TensorContext, Trim, nearest
from mergetime.merging.outputs import OUTPUTS, Dense, LowRank, Output, Update, factor_keys
from mergetime.merging.pool import Pool, TensorStack, open_pool
from mergetime.merging.trimming import Cuts, NotFiniteError, chained, find, trim_rows, trim_stack

if TYPE_CHECKING:
    import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
Progress = Callable[[int, int], None]
"""Called with the entries merged so far and those in all."""
SAMPLE = 1 << 15
"""Entries of an expert that are sampled to begin the search for a threshold."""


@dataclass
class Tally:
    """Sums over a tensor, or over all."""

    entries: int = 0
    squares: list[float] = field(default_factory=list)
    merged: float = 0.0
    error: float = 0.0
    counted: int = 0
    zeros: int = 0
    conflicts: int = 0

    def add(self, other: Tally) -> None:
        """Take in another tally."""
        if other.squares:
            own = self.squares or [0.0] * len(other.squares)
            self.squares = [a + b for a, b in zip(own, other.squares, strict=True)]
        for name in ("entries", "merged", "error", "counted", "zeros", "conflicts"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def summary(self, experts: Sequence[str]) -> dict[str, Any]:
        """What people read of it; shares of entries only where the merge went entry by entry."""
        found: dict[str, Any] = {
            "expert_norms": {name: math.sqrt(own) for name, own in zip(experts, self.squares, strict=True)},
            "merged_norm": math.sqrt(self.merged),
            "entries": self.entries,
            "relative_error": math.sqrt(self.error / self.merged) if self.merged else 0.0,
        }
        if self.counted:
            found |= {"sparsity": self.zeros / self.counted, "sign_conflicts": self.conflicts / self.counted}
        return found


@dataclass(frozen=True)
class Work:
    """What stays the same for every tensor of a merge in delta space."""

    pool: Pool
    method: Method
    params: Mapping[str, Any]
    seed: int
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


def merge(
    experts: Sequence[tuple[str, Path]],
    *,
    method: str,
    params: Mapping[str, Any],
    space: str,
    seed: int | None,
    out: Path,
    preset: str | None = None,
    output: Output | None = None,
    dtype: str = "float32",
    rank: int | None = None,
    base: Path | None = None,
    base_sha256: str | None = None,
    statistics: Mapping[str, Path] | None = None,
    threads: int = 1,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Merge experts and write the result into the folder ``out``; files appear there only when they are complete.

    Args:
        experts: names and folders, of adapters or of full checkpoints; the names enter the masks of stochastic methods,
            the order does not count.
        method: id in the registry.
        params: its parameters; the preset and the defaults fill in the others.
        space: ``delta`` or ``adapter``.
        seed: seed; a stochastic method needs one.
        out: folder to write to.
        preset: named set of parameters of the method.
        output: ``adapter``, ``delta`` or ``checkpoint``; None: an adapter where that is exact, else the task vector.
        dtype: of a task vector or a checkpoint; sums are in fp32 in any case.
        rank: largest rank of an adapter; None: what is exact.
        base: folder of the base; full checkpoints, and writing one, need it.
        base_sha256: the base that the result is for; experts that were trained on another are refused.
        statistics: expert to the file of what was measured on its data, for methods that need it.
        threads: tensors that are merged at a time; the result does not depend on it.
        device: ``cpu`` or ``cuda``.
        progress: told after every tensor.

    Returns:
        Norms of the experts' and the merged updates, the relative error of what was written, entries, where the merge
        went entry by entry the share of exact zeros and that of entries with opposite signs, which experts' bases were
        recorded, the form written, and seconds.

    Raises:
        UserError, ValueError: in one line that names the expert, tensor or parameter.
    """
    started = time.perf_counter()
    chosen = registry.get(method)
    values = chosen.validate(params, preset)
    in_adapter_space = chosen.check_space(space) == "adapter"
    if chosen.stochastic and seed is None:
        raise UserError(f"{method}: is stochastic and has no seed; give --seed")
    with (
        open_pool(experts, base=base, base_sha256=base_sha256, statistics=statistics, device=device) as pool,
        _single_threaded(),
    ):
        work = Work(pool, chosen, values, seed or 0)
        _check(work, in_adapter_space=in_adapter_space, statistics=statistics)
        if dtype not in DTYPES:
            raise UserError(f"dtype: {dtype} is not one of {', '.join(DTYPES)}")
        form = _form(work, output, rank, dtype, in_adapter_space=in_adapter_space)
        if (out / CONFIG).exists() and MERGED not in read_json(out / CONFIG, str(out)):
            raise UserError(f"{out}: holds a model that is no merge; give --out another folder")
        for folder in (base, *(folder for _, folder in experts)):
            if folder and Path(folder).resolve() == out.resolve():
                raise UserError(f"{out}: is the folder of an input; give --out another folder")
        out.mkdir(parents=True, exist_ok=True)
        if in_adapter_space:
            tally = _merge_factors(work, out, threads, progress)
        else:
            tally = _merge_deltas(_prepared(work), form, out, dtype, rank, threads, progress)
        _remove_others(out, form)
        recorded = {member.name: member.base_sha256 is not None for member in pool.members}
    return {
        **tally.summary(work.pool.names),
        "base_recorded": recorded,
        "output": form,
        "seconds": round(time.perf_counter() - started, 3),
    }


def merge_stack(method: Method, stack: torch.Tensor, context: TensorContext, params: Mapping[str, Any]) -> torch.Tensor:
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


@contextmanager
def _single_threaded() -> Iterator[None]:
    """One thread an operation, as tensors are merged by several: a result then does not depend on their number."""
    import torch

    _keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _keep_freed_memory() -> None:
    """Tell glibc to keep a block's memory for the next one: fetching it anew costs as much as merging."""
    with suppress(AttributeError, OSError):
        for limit, size in ((_M_MMAP_THRESHOLD, 1 << 26), (_M_TRIM_THRESHOLD, 1 << 27)):
            ctypes.CDLL(None).mallopt(limit, size)


def _check(work: Work, *, in_adapter_space: bool, statistics: Mapping[str, Path] | None) -> None:
    """Refuse what the method cannot merge."""
    method, pool = work.method, work.pool
    least, most = method.count
    if not least <= len(pool.names) <= most:
        raise UserError(f"{method.id}: merges {least} to {most:g} experts, here are {len(pool.names)}")
    for parameter in method.parameters:
        given = work.params[parameter.name] if parameter.per_expert else None
        for name in given or ():
            if name not in pool.names:
                raise UserError(f"{parameter.name}: {name!r} is no expert of this merge{nearest(name, pool.names)}")
        if given and (absent := [name for name in pool.names if name not in given]):
            raise UserError(f"{parameter.name}: has no number for expert {absent[0]}")
    if method.statistics and not statistics:
        raise UserError(f"{method.id}: needs the {method.statistics} of every expert; measure_expert.py makes it")
    if method.level == "factors" and not pool.adapters:
        raise UserError(f"{method.id}: aligns LoRA factors; full checkpoints have none")
    if method.wants_base(work.params) and pool.base is None:
        raise UserError(f"{method.id}: needs the base's weights; give --base a folder")
    if in_adapter_space:
        if not pool.adapters:
            raise UserError("adapter space merges LoRA factors; full checkpoints have none, use --space delta")
        _check_ranks(pool)
        scopes = (work.trim.scope if work.trim else None, work.surveyed)
        if "model" in scopes:
            raise UserError(f"{method.id}: ranks and votes over the whole model are for delta space")


def _check_ranks(pool: Pool) -> None:
    for adapter in pool.adapters:
        for module, (_, rank, _) in adapter.shapes.items():
            first = pool.adapters[0].shapes[module][1]
            if rank != first:
                raise UserError(
                    f"{adapter}: {module} has rank {rank}, in {pool.adapters[0]} it has rank {first}; "
                    "adapter space needs equal ranks, delta space does not"
                )


def _form(work: Work, output: Output | None, rank: int | None, dtype: str, *, in_adapter_space: bool) -> Output:
    """The output to write.

    Raises:
        UserError: where the output asked for is impossible, or not exact without a rank.
    """
    exact = bool(work.pool.adapters) and (in_adapter_space or work.method.keeps_low_rank(work.params))
    form: Output = output or ("adapter" if exact else "delta")
    if form not in OUTPUTS:
        raise UserError(f"output: {form!r} is not one of {', '.join(OUTPUTS)}")
    if form == "adapter" and not work.pool.adapters:
        raise UserError("full checkpoints do not merge into an adapter; use --output delta or checkpoint")
    if form == "adapter" and not exact and rank is None:
        raise UserError(f"{work.method.id}: its result is dense; give --rank for the best adapter of that rank")
    if form != "adapter" and rank is not None:
        raise UserError(f"--rank is of an adapter; the output is a {form}")
    if form == "adapter" and dtype != "float32":
        raise UserError(f"an adapter is written in float32, not in {dtype}; drop --dtype or write another output")
    if in_adapter_space and (form != "adapter" or rank is not None):
        raise UserError("adapter space writes an adapter of the experts' rank; other outputs are for delta space")
    if form == "checkpoint" and work.pool.base is None:
        raise UserError("a checkpoint needs the base's weights; give --base a folder")
    return form


def _remove_others(out: Path, form: Output) -> None:
    """Remove an older merge's files of another form: a folder holds one result."""
    forms = {
        "adapter": [out / ADAPTER_WEIGHTS, out / ADAPTER_CONFIG],
        "delta": [out / TASK_VECTOR],
        "checkpoint": [out / CONFIG, out / INDEX, *out.glob("model*.safetensors")],
    }
    for other, paths in forms.items():
        for path in paths if other != form else ():
            path.unlink(missing_ok=True)


def _prepared(work: Work) -> Work:
    """The work with what is ranked or surveyed over the whole model."""
    pool = work.pool
    if work.trim and work.trim.scope == "model":
        import torch

        size = sum(math.prod(shape) for shape in pool.shapes.values())
        step = size / (16 * SAMPLE)
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
                _add_norms(Tally(), work, stack, block)
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


def _merge_deltas(
    work: Work, form: Output, out: Path, dtype: str, rank: int | None, threads: int, progress: Progress | None
) -> Tally:
    """Merge in delta space, every tensor by itself."""
    pool = work.pool
    if form == "adapter":
        opened = outputs.adapter(pool, out, rank)
    elif form == "delta":
        opened = outputs.delta(pool, out, dtype)
    else:
        assert pool.base is not None
        opened = outputs.checkpoint(pool, pool.base, out, dtype)
    with opened as write:

        def task(name: str) -> Tally:
            if name not in pool.shapes:
                return Tally(error=write(name, None))
            stack = replace(pool.tensor(name), whole=work.method.whole)
            tally = Tally(entries=stack.entries)
            update = _merged(work, stack, tally)
            if isinstance(update, LowRank):
                tally.merged = square(update.left, update.right)
            tally.error = write(name, update)
            if not math.isfinite(tally.merged):
                raise UserError(f"{work.method.id}: {name} is not finite after merging with {dict(work.params)}")
            return tally

        names = dict.fromkeys([*pool.shapes, *(pool.base.keys_kept if form == "checkpoint" and pool.base else ())])
        return _run(task, pool, names, threads, progress)


def _merge_factors(work: Work, out: Path, threads: int, progress: Progress | None) -> Tally:
    """Merge in adapter space: A and B of every module by themselves."""
    import torch

    pool = work.pool
    with outputs.factors(pool, out) as write:

        def task(name: str) -> Tally:
            module = name.removesuffix(".weight")
            pairs = [adapter.factors(module) for adapter in pool.adapters]
            scalings = tuple(adapter.scaling(module) for adapter in pool.adapters)
            tally, merged = Tally(), []
            factors: tuple[Literal["A", "B"], ...] = ("A", "B")
            for key, factor, tensors in zip(factor_keys(pool, name), factors, zip(*pairs, strict=True), strict=True):
                stack = torch.stack(tensors).to(pool.device)
                context = TensorContext(key, pool.names, work.seed, scalings, factor, tuple(stack.shape[1:]))
                result = merge_stack(work.method, stack, context, work.params)
                if not torch.isfinite(result).all():
                    raise UserError(f"{work.method.id}: {key} is not finite after merging with {dict(work.params)}")
                _count(tally, stack, result)
                merged.append(result)
            tally.entries = tally.counted
            tally.squares = [scaling**2 * square(b, a) for (a, b), scaling in zip(pairs, scalings, strict=True)]
            tally.merged = square(merged[1], merged[0])
            write(name, merged[0], merged[1])
            return tally

        return _run(task, pool, pool.shapes, threads, progress)


def _run(
    task: Callable[[str], Tally], pool: Pool, names: Iterable[str], threads: int, progress: Progress | None
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


def _merged(work: Work, stack: TensorStack, tally: Tally) -> Update:
    """The merged update of a tensor; the tally gets the experts' norms, and for dense updates all else."""
    method = work.method
    if method.level == "entries":
        return Dense(_finished(work, stack, _entries(work, stack, tally), tally), stack.shape)
    if method.level == "experts":
        return _weighted(work, stack, method.function, tally)
    if stack.kind != "linear":
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
            _add_norms(tally, work, stack, block)
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
    if work.method.statistics and measured is None and stack.kind == "linear":
        raise UserError(f"{work.method.id}: {stack.name} has no {work.method.statistics}; measure the experts again")
    context = work.context(stack, survey=survey)
    for (first, end), (start, block) in zip(stack.starts(), stack.blocks(), strict=True):
        _add_norms(tally, work, stack, block)
        kept = _trimmed(work, stack, cuts, start, block)
        own = measured[:, first:end] if measured is not None and measured.shape[1:] == stack.shape else measured
        merged = work.call(work.method.function, kept, replace(context, start=start, statistics=own))
        _count(tally, block, merged)
        yield start, merged


def _finished(
    work: Work, stack: TensorStack, blocks: Iterator[tuple[int, torch.Tensor]], tally: Tally
) -> Iterator[tuple[int, torch.Tensor]]:
    if work.method.finish is None or stack.kind != "linear":
        return _tallied(blocks, tally)
    matrix = Dense(((start, block.clone()) for start, block in blocks), stack.shape).matrix()
    return _tallied([(0, work.call(work.method.finish, matrix, work.context(stack)))], tally)


def _tallied(blocks: Iterable[tuple[int, torch.Tensor]], tally: Tally) -> Iterator[tuple[int, torch.Tensor]]:
    for start, block in blocks:
        tally.merged += _square(block)
        yield start, block


def _add_norms(tally: Tally, work: Work, stack: TensorStack, block: torch.Tensor) -> None:
    """Add a block's squares to the tally, and refuse values that are not finite."""
    import torch

    norms = torch.linalg.vector_norm(block.flatten(1), dim=1).tolist()
    for place, norm in enumerate(norms):
        if not math.isfinite(norm) and not torch.isfinite(block[place]).all():
            if stack.tensors and work.pool.base and not torch.isfinite(work.pool.base.tensor(stack.name)).all():
                raise UserError(f"{work.pool.base}: {stack.name} holds NaN or infinite values; fetch it again")
            raise UserError(
                f"expert {work.pool.names[place]}: {stack.name} holds NaN or infinite values; its training diverged"
            )
    tally.squares = [a + b * b for a, b in zip(tally.squares or [0.0] * len(norms), norms, strict=True)]


def _count(tally: Tally, stack: torch.Tensor, merged: torch.Tensor) -> None:
    tally.counted += merged.numel()
    tally.zeros += _how_many(merged, 0.0, equal=True)
    # Opposite signs: the largest entry times the smallest is negative.
    tally.conflicts += _how_many(stack.amax(dim=0) * stack.amin(dim=0), 0.0, equal=False)


def _how_many(tensor: torch.Tensor, value: float, *, equal: bool) -> int:
    """How many entries equal the value, or are below it; on the CPU by NumPy, which counts ten times as fast."""
    import numpy as np

    if tensor.device.type != "cpu":
        return int(((tensor == value) if equal else (tensor < value)).sum())
    entries = tensor.numpy()
    return int(np.count_nonzero(entries == value if equal else entries < value))


def _squares(stack: TensorStack) -> list[float]:
    return [square(left, right) for left, right in zip(stack.lefts, stack.rights, strict=True)]


def _matrices(work: Work, stack: TensorStack, tally: Tally) -> torch.Tensor:
    """The task vectors as whole matrices in float64 [experts, m, n]."""
    import torch

    whole = torch.empty((len(stack.pool.names), *stack.shape), dtype=torch.float64, device=stack.pool.device)
    for (first, end), (_, block) in zip(stack.starts(), stack.blocks(), strict=True):
        _add_norms(tally, work, stack, block)
        whole[:, first:end] = block
    return whole


def _square(tensor: torch.Tensor) -> float:
    import torch

    return float(torch.linalg.vector_norm(tensor)) ** 2
