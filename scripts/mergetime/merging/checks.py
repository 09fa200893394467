"""What is refused before a merge begins: a method, a pool and parameters that do not fit each other."""

from collections.abc import Mapping
from pathlib import Path

from mergetime.architectures.architecture import MATRICES
from mergetime.core.errors import UserError
from mergetime.core.words import nearest
from mergetime.merging.method import MergeMethod
from mergetime.merging.pool import OpenPool
from mergetime.merging.work import Work


def check_settings(method: MergeMethod, device: str, seed: int | None) -> None:
    """Refuse a device that is not there, and a stochastic method without a seed."""
    import torch

    if device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"device: there is no {device} here; merge on the cpu")
    if method.stochastic and seed is None:
        raise UserError(f"{method.id}: is stochastic and has no seed; give --seed")


def check_work(work: Work, statistics: Mapping[str, Path] | None) -> None:
    """Refuse what the method cannot merge."""
    method, pool = work.method, work.pool
    least, most = method.count
    if not least <= len(pool.names) <= most:
        raise UserError(f"{method.id}: merges {least} to {most:g} experts, here are {len(pool.names)}")
    _check_experts(work)
    if work.by_tensor is not None:
        _check_by_tensor(work)
    if method.statistics and not statistics:
        raise UserError(f"{method.id}: needs the {method.statistics} of every expert; measure_expert.py makes it")
    if method.statistics == "gram":
        _check_banks(method, pool)
    if method.level == "factors" and not pool.adapters:
        raise UserError(f"{method.id}: aligns LoRA factors; full checkpoints have none")
    if method.level == "factors":
        for name, adapter in pool.dense.items():
            if pool.architecture.role(name, pool.shapes[name]) in MATRICES:
                raise UserError(f"{method.id}: aligns LoRA factors; {adapter} {adapter.dense[name]}")
    if method.wants_base(work.params) and pool.base is None:
        raise UserError(f"{method.id}: needs the base's weights; give --base a folder")
    if method.statistics and pool.adapters:
        _check_same_modules(pool, f"{method.id} weighs every module by data of all experts")
    if work.space == "adapter":
        if not pool.adapters:
            raise UserError("adapter space merges LoRA factors; full checkpoints have none, use --space delta")
        for name, adapter in pool.dense.items():
            raise UserError(f"{adapter}: {adapter.dense[name]}, which adapter space cannot merge; use --space delta")
        _check_same_modules(pool, "adapter space merges factor by factor, delta space takes it for no update")
        _check_ranks(pool)
        if "model" in _scopes(work):
            raise UserError(f"{method.id}: ranks and votes over the whole model are for delta space")


def _scopes(work: Work) -> tuple[str | None, str | None]:
    """Where entries are ranked, and where votes are counted."""
    return (work.trim.scope if work.trim else None, work.surveyed)


def _check_experts(work: Work) -> None:
    """Refuse numbers by expert that are not those of the experts here."""
    names = work.pool.names
    for parameter in work.method.parameters:
        given = work.params[parameter.name]
        given = given if isinstance(given, Mapping) else {}
        for name in given:
            if name not in names:
                raise UserError(f"{parameter.name}: {name!r} is no expert of this merge{nearest(name, names)}")
        if given and (absent := [name for name in names if name not in given]):
            raise UserError(f"{parameter.name}: has no number for expert {absent[0]}")


def _check_by_tensor(work: Work) -> None:
    """Refuse parameters of a tensor that do not fit, before anything is written."""
    if work.space == "adapter":
        raise UserError("parameters that depend on the tensor are for delta space; use --space delta")
    for name in work.pool.shapes:
        of_tensor = work.of_tensor(name)
        _check_experts(of_tensor)
        if "model" in _scopes(of_tensor):
            raise UserError(f"{work.method.id}: ranks and votes over the whole model take one number for all tensors")


def _check_banks(method: MergeMethod, pool: OpenPool) -> None:
    """Refuse banks of experts where a method needs the inputs of every matrix."""
    for name, shape in pool.shapes.items():
        if pool.architecture.role(name, shape) == "expert_bank":
            raise UserError(
                f"{method.id}: {name} is a bank of {shape[0]} experts; it needs the inputs of each of their matrices, "
                "which are not measured; choose another method"
            )


def _check_same_modules(pool: OpenPool, why: str) -> None:
    """Refuse adapters on different modules, where one that lacks a module cannot count as one that leaves it as is."""
    for adapter in pool.adapters:
        for name in pool.shapes:
            if not adapter.moves(name):
                holder = next(other for other in pool.adapters if other.moves(name))
                raise UserError(f"{adapter}: has no {name.removesuffix('.weight')}, which {holder} has; {why}")


def _check_ranks(pool: OpenPool) -> None:
    """Refuse adapters of different ranks: their factors have no common shape."""
    for adapter in pool.adapters:
        for module, (_, rank, _) in adapter.shapes.items():
            first = pool.adapters[0].shapes[module][1]
            if rank != first:
                raise UserError(
                    f"{adapter}: {module} has rank {rank}, in {pool.adapters[0]} it has rank {first}; "
                    "adapter space needs equal ranks, delta space does not"
                )
