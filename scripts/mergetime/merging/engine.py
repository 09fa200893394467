"""Merging a pool of experts: one tensor at a time, block by block, by several threads, from files to files."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mergetime.artifacts.checkpoints import MERGED
from mergetime.artifacts.files import DTYPES, read_json
from mergetime.artifacts.forms import FORMS, FormName, files_in
from mergetime.artifacts.names import MODEL_CONFIG
from mergetime.core.errors import UserError
from mergetime.core.words import nearest
from mergetime.merging import outputs, registry
from mergetime.merging.factors import square
from mergetime.merging.method import MergeMethod, TensorContext
from mergetime.merging.outputs import LowRank, factor_keys
from mergetime.merging.pool import OpenPool, open_pool
from mergetime.merging.tally import Tally, count_entries
from mergetime.merging.threads import one_thread_an_operation
from mergetime.merging.updates import Work, merge_stack, merged_update, prepared

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
Progress = Callable[[int, int], None]
"""Called with the entries merged so far and those in all."""


@dataclass(frozen=True)
class Target:
    """Where a merge is written, and how."""

    folder: Path
    form: FormName
    dtype: str
    rank: int | None


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
    progress: Progress | None = None,
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
        progress: told after every tensor.

    Returns:
        What :meth:`Tally.summary` says, which experts' bases were recorded, the form written, seconds without imports.

    Raises:
        UserError, ValueError: in one line that names the expert, tensor or parameter.
    """
    import torch  # noqa: F401  Imports are not part of the time that a merge takes.

    started = time.perf_counter()
    chosen = registry.get(method)
    values, known_space = chosen.validate(params, preset), chosen.check_space(space)
    _check_settings(chosen, device, seed)
    opened = open_pool(
        experts,
        base=base,
        base_sha256=base_sha256,
        statistics=statistics,
        device=device,
        architecture=architecture,
    )
    with opened as pool, one_thread_an_operation():
        work = Work(pool, chosen, values, seed or 0, known_space)
        _check(work, statistics)
        target = _target(work, out, output, dtype, rank)
        _check_folder(out, filter(None, [base, *(folder for _, folder in experts)]))
        tally = _merge(work, target, threads, progress)
    facts = {
        "architecture": pool.architecture.name,
        "base_recorded": pool.base_recorded,
        "output": target.form,
    }
    return tally.summary(pool.names) | facts | {"seconds": round(time.perf_counter() - started, 3)}


def _merge(work: Work, target: Target, threads: int, progress: Progress | None) -> Tally:
    """Merge into the target's folder, which holds nothing else of a merge afterwards."""
    _keep_freed_memory()
    target.folder.mkdir(parents=True, exist_ok=True)
    if work.space == "adapter":
        tally = _merge_factors(work, target, threads, progress)
    else:
        tally = _merge_deltas(prepared(work), target, threads, progress)
    _remove_others(target)
    return tally


def _keep_freed_memory() -> None:
    """Tell glibc to keep a block's memory for the next one: fetching it anew costs as much as merging."""
    with suppress(AttributeError, OSError):
        for limit, size in ((_M_MMAP_THRESHOLD, 1 << 26), (_M_TRIM_THRESHOLD, 1 << 27)):
            ctypes.CDLL(None).mallopt(limit, size)


def _check_settings(method: MergeMethod, device: str, seed: int | None) -> None:
    import torch

    if device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"device: there is no {device} here; merge on the cpu")
    if method.stochastic and seed is None:
        raise UserError(f"{method.id}: is stochastic and has no seed; give --seed")


def _check(work: Work, statistics: Mapping[str, Path] | None) -> None:
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
    if method.statistics == "gram":
        _check_banks(method, pool)
    if method.level == "factors" and not pool.adapters:
        raise UserError(f"{method.id}: aligns LoRA factors; full checkpoints have none")
    if method.wants_base(work.params) and pool.base is None:
        raise UserError(f"{method.id}: needs the base's weights; give --base a folder")
    if work.space == "adapter":
        if not pool.adapters:
            raise UserError("adapter space merges LoRA factors; full checkpoints have none, use --space delta")
        _check_ranks(pool)
        scopes = (work.trim.scope if work.trim else None, work.surveyed)
        if "model" in scopes:
            raise UserError(f"{method.id}: ranks and votes over the whole model are for delta space")


def _check_banks(method: MergeMethod, pool: OpenPool) -> None:
    """Refuse banks of experts where a method needs the inputs of every matrix."""
    for name, shape in pool.shapes.items():
        if pool.architecture.role(name, shape) == "expert_bank":
            raise UserError(
                f"{method.id}: {name} is a bank of {shape[0]} experts; it needs the inputs of each of their matrices, "
                "which are not measured; choose another method"
            )


def _check_ranks(pool: OpenPool) -> None:
    for adapter in pool.adapters:
        for module, (_, rank, _) in adapter.shapes.items():
            first = pool.adapters[0].shapes[module][1]
            if rank != first:
                raise UserError(
                    f"{adapter}: {module} has rank {rank}, in {pool.adapters[0]} it has rank {first}; "
                    "adapter space needs equal ranks, delta space does not"
                )


def _target(work: Work, folder: Path, output: FormName | None, dtype: str, rank: int | None) -> Target:
    """Where the merge is written, and how.

    Raises:
        UserError: where the output asked for is impossible, or not exact without a rank.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype: {dtype} is not one of {', '.join(DTYPES)}")
    in_adapter_space = work.space == "adapter"
    exact = bool(work.pool.adapters) and (in_adapter_space or work.method.keeps_low_rank(work.params))
    form: FormName = output or ("adapter" if exact else "delta")
    if form not in FORMS:
        raise UserError(f"output: {form!r} is not one of {', '.join(FORMS)}")
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
    return Target(folder, form, dtype, rank)


def _check_folder(out: Path, inputs: Iterable[Path]) -> None:
    """Refuse a folder that holds a model, unless it is a merge that is written anew."""
    if (out / MODEL_CONFIG).exists() and MERGED not in read_json(out / MODEL_CONFIG, str(out)):
        raise UserError(f"{out}: holds a model that is no merge; give --out another folder")
    if out.resolve() in [folder.resolve() for folder in inputs]:
        raise UserError(f"{out}: is the folder of an input; give --out another folder")


def _remove_others(target: Target) -> None:
    """Remove an older merge's files of another form: a folder holds one result."""
    for form in FORMS.values():
        if form.name != target.form:
            # The config first: what a kill leaves is then no model.
            for file in reversed(files_in(target.folder, form)):
                file.unlink()


def _merge_deltas(work: Work, target: Target, threads: int, progress: Progress | None) -> Tally:
    """Merge in delta space, every tensor by itself."""
    pool, form = work.pool, target.form
    if form == "adapter":
        opened = outputs.adapter(pool, target.folder, target.rank)
    elif form == "delta":
        opened = outputs.delta(pool, target.folder, target.dtype)
    else:
        assert pool.base is not None
        opened = outputs.checkpoint(pool, pool.base, target.folder, target.dtype)
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
