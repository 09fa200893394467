"""Merging a pool of experts in one of the two spaces, streamed module by module from files to a file."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mergetime.errors import UserError
from mergetime.merging import registry
from mergetime.merging.adapters import Adapter, open_pool
from mergetime.merging.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, TASK_VECTOR, write_safetensors
from mergetime.merging.method import Method, TensorContext

if TYPE_CHECKING:
    import torch


@dataclass
class _Tally:
    """Sums over all tensors for the summary of a merge."""

    experts: list[str]
    squares: dict[str, float] = field(default_factory=dict)
    merged_square: float = 0.0
    entries: int = 0
    zeros: int = 0
    conflicts: int = 0

    def add_entries(self, stack: torch.Tensor, merged: torch.Tensor) -> None:
        self.entries += merged.numel()
        self.zeros += merged.numel() - int(merged.count_nonzero())
        self.conflicts += int(((stack.amax(dim=0) > 0) & (stack.amin(dim=0) < 0)).count_nonzero())

    def add_squares(self, experts: Sequence[float], merged: float) -> None:
        for name, square in zip(self.experts, experts, strict=True):
            self.squares[name] = self.squares.get(name, 0.0) + square
        self.merged_square += merged

    def summary(self) -> dict[str, Any]:
        return {
            "expert_norms": {name: math.sqrt(square) for name, square in self.squares.items()},
            "merged_norm": math.sqrt(self.merged_square),
            "sparsity": self.zeros / self.entries,
            "sign_conflicts": self.conflicts / self.entries,
            "entries": self.entries,
        }


@dataclass(frozen=True)
class _Merge:
    """What stays the same for every tensor of a merge."""

    pool: list[Adapter]
    method: Method
    params: Mapping[str, Any]
    seed: int
    tally: _Tally

    def apply(
        self,
        stack: torch.Tensor,
        tensor: str,
        scalings: tuple[float, ...] = (),
        factor: Literal["A", "B"] | None = None,
    ) -> torch.Tensor:
        import torch

        context = TensorContext(tensor, tuple(self.tally.experts), self.seed, scalings, factor)
        merged = self.method(stack, context, self.params)
        if not torch.isfinite(merged).all():
            raise UserError(f"{self.method.id}: {tensor} is not finite after merging with {dict(self.params)}")
        self.tally.add_entries(stack, merged)
        return merged


def merge(
    experts: Sequence[tuple[str, Path]],
    *,
    method: str,
    params: Mapping[str, Any],
    space: str,
    seed: int,
    out: Path,
    base_sha256: str | None = None,
) -> dict[str, Any]:
    """Merge experts and write the result into the folder ``out``.

    Delta space writes ``task_vector.safetensors``: dense fp32 updates under the base's parameter names. Adapter space
    writes a LoRA adapter with scaling 1 that PEFT loads. Files appear under their names only when they are complete.

    Args:
        experts: names and adapter folders; the names enter the masks of stochastic methods, the order does not count.
        method: id in the registry.
        params: its parameters; defaults fill in the others.
        space: ``delta`` or ``adapter``.
        seed: seed of stochastic methods.
        out: folder to write to.
        base_sha256: the base that the result is for; experts that were trained on another are refused.

    Returns:
        Norms of the experts' and the merged updates, share of exact zeros among the entries written, share of entries
        where experts have opposite signs, which experts' bases were recorded, and seconds.
    """
    started = time.perf_counter()
    chosen = registry.get(method)
    in_adapter_space = chosen.check_space(space) == "adapter"
    values = chosen.validate(params)
    with open_pool(experts, base_sha256) as pool:
        work = _Merge(pool, chosen, values, seed, _Tally([adapter.name for adapter in pool]))
        if in_adapter_space:
            _check_ranks(pool)
        out.mkdir(parents=True, exist_ok=True)
        with _completed(out / (ADAPTER_WEIGHTS if in_adapter_space else TASK_VECTOR)) as partial:
            if in_adapter_space:
                write_safetensors(partial, _factor_shapes(pool[0]), _merged_factors(work))
            else:
                write_safetensors(partial, _delta_shapes(pool[0]), _merged_deltas(work))
            if in_adapter_space:
                with _completed(out / ADAPTER_CONFIG) as config:
                    config.write_text(json.dumps(_merged_config(pool[0]), indent=2, sort_keys=True) + "\n")
        recorded = {adapter.name: adapter.base_sha256 is not None for adapter in pool}
    return {**work.tally.summary(), "base_recorded": recorded, "seconds": round(time.perf_counter() - started, 3)}


@contextmanager
def _completed(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; renamed when all went well, removed when not."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _merged_deltas(work: _Merge) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    for module in work.pool[0].shapes:
        stack = torch.stack([adapter.delta(module) for adapter in work.pool])
        merged = work.apply(stack, f"{module}.weight")
        work.tally.add_squares([_square(delta) for delta in stack], _square(merged))
        yield f"{module}.weight", merged


def _merged_factors(work: _Merge) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    for module in work.pool[0].shapes:
        factors = [adapter.factors(module) for adapter in work.pool]
        scalings = tuple(adapter.scaling(module) for adapter in work.pool)
        key_a, key_b = _factor_keys(module)
        merged_a = work.apply(torch.stack([a for a, _ in factors]), key_a, scalings, "A")
        merged_b = work.apply(torch.stack([b for _, b in factors]), key_b, scalings, "B")
        squares = [scaling**2 * _product_square(a, b) for (a, b), scaling in zip(factors, scalings, strict=True)]
        work.tally.add_squares(squares, _product_square(merged_a, merged_b))
        yield key_a, merged_a
        yield key_b, merged_b


def _square(tensor: torch.Tensor) -> float:
    import torch

    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2


def _product_square(a: torch.Tensor, b: torch.Tensor) -> float:
    """The squared norm of B A from the factors' Gram matrices, without forming B A."""
    a, b = a.double(), b.double()
    return max(0.0, float(((a @ a.T) * (b.T @ b)).sum()))


def _factor_keys(module: str) -> tuple[str, str]:
    return f"base_model.model.{module}.lora_A.weight", f"base_model.model.{module}.lora_B.weight"


def _delta_shapes(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    return {f"{module}.weight": (outputs, inputs) for module, (outputs, _, inputs) in adapter.shapes.items()}


def _factor_shapes(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for module, (outputs, rank, inputs) in adapter.shapes.items():
        key_a, key_b = _factor_keys(module)
        shapes |= {key_a: (rank, inputs), key_b: (outputs, rank)}
    return shapes


def _check_ranks(pool: list[Adapter]) -> None:
    for adapter in pool:
        for module, (_, rank, _) in adapter.shapes.items():
            first = pool[0].shapes[module][1]
            if rank != first:
                raise UserError(
                    f"{adapter}: {module} has rank {rank}, in {pool[0]} it has rank {first}; "
                    "adapter space needs equal ranks, delta space does not"
                )


def _merged_config(first: Adapter) -> dict[str, Any]:
    """The first expert's config with scaling 1: the factors have taken in the scalings."""
    rank = int(first.config["r"])
    others = {module: own for module, (_, own, _) in first.shapes.items() if own != rank}
    targets = first.config.get("target_modules")
    return {
        **first.config,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "use_rslora": False,
        "inference_mode": True,
        "target_modules": sorted(targets) if isinstance(targets, list) else targets,
    }
