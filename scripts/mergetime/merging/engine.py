"""Merging a pool of experts: one tensor at a time, block by block, by several threads, from files to files."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mergetime.errors import UserError
from mergetime.merging import outputs, registry
from mergetime.merging.checkpoints import CONFIG, INDEX, MERGED
from mergetime.merging.factors import square
from mergetime.merging.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, DTYPES, TASK_VECTOR, read_json
from mergetime.merging.method import TensorContext, nearest
from mergetime.merging.outputs import OUTPUTS, LowRank, Output, factor_keys
from mergetime.merging.pool import Pool, open_pool
from mergetime.merging.tally import Tally, count_entries
from mergetime.merging.updates import Work, merge_stack, merged_update, prepared

if TYPE_CHECKING:
    pass

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
Progress = Callable[[int, int], None]
"""Called with the entries merged so far and those in all."""


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
        recorded, the form written, and seconds without imports.

    Raises:
        UserError, ValueError: in one line that names the expert, tensor or parameter.
    """
    import torch  # noqa: F401  Imports are not part of the time that a merge takes.

    started = time.perf_counter()
    chosen = registry.get(method)
    values = chosen.validate(params, preset)
    in_adapter_space = chosen.check_space(space) == "adapter"
    _check_device(device)
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
            tally = _merge_deltas(prepared(work), form, out, dtype, rank, threads, progress)
        _remove_others(out, form)
        recorded = {member.name: member.base_sha256 is not None for member in pool.members}
    return {
        **tally.summary(work.pool.names),
        "base_recorded": recorded,
        "output": form,
        "seconds": round(time.perf_counter() - started, 3),
    }


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


def _check_device(device: str) -> None:
    import torch

    if device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"device: there is no {device} here; merge on the cpu")


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
            update = merged_update(work, stack, tally)
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
                count_entries(tally, stack, result)
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
