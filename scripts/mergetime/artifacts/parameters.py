"""LoRA on parameters (``target_parameters`` of PEFT), banks of experts above all: what it does to tensors of the base.

PEFT 0.21.2 (``ParamWrapper`` of ``peft/tuners/lora/layer.py``) gives a bank of n matrices one A [n * rank, inputs], the
matrices' rows one after another, and one B [outputs, rank * n], their columns in turn. It wraps a module once for each
of its parameters, in the order in which the model makes them: the first is the innermost, under most ``base_layer``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from mergetime.artifacts.adapter_config import by_pattern
from mergetime.artifacts.base_weights import BaseWeights, base_name
from mergetime.artifacts.factors import Keys
from mergetime.artifacts.names import ADAPTER_CONFIG
from mergetime.core.errors import UserError

if TYPE_CHECKING:
    import torch

_WRAPPED = ".base_layer"


@dataclass(frozen=True)
class _Parameter:
    """A parameter that was trained: a matrix, or a bank, which the base may hold matrix by matrix.

    Attributes:
        name: what the patterns of the config call it.
        keys: of A and B in the file.
        size: matrices of the bank (1: a matrix), rows and columns of each.
        places: tensor of the base to the place of its matrix in the bank, and the matrix's first row and last that it
            has; without a place it is all of the bank.
    """

    name: str
    keys: tuple[str, str]
    size: tuple[int, int, int]
    places: Mapping[str, tuple[int | None, int, int]]


@dataclass(frozen=True)
class Share:
    """What the factors of a parameter do to a tensor of the base.

    Attributes:
        keys: of A and B in the file.
        count: matrices of the bank.
        rank: of each of them.
        scaling: of the update.
        place: of the tensor's matrix in the bank; None for a tensor that is all of the bank.
        first: the first output of the matrix that the tensor has.
        end: the one after the last.
        turned: whether matrices are [inputs, outputs] in the base's file.
    """

    keys: tuple[str, str]
    count: int
    rank: int
    scaling: float
    place: int | None
    first: int
    end: int
    turned: bool

    def update(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """L R of the tensor's update, with the scaling in L, from A and the rows ``first`` to ``end`` of B in fp32.

        Of a bank, both have one matrix for each of its own.
        """
        b = b * self.scaling
        if self.place is not None:
            return b[:, self.place :: self.count], a[self.place * self.rank : (self.place + 1) * self.rank]
        inner = a.view(self.count, self.rank, -1)
        outer = b.view(len(b), self.rank, self.count).permute(2, 0, 1)
        return (inner.mT, outer.mT) if self.turned else (outer, inner)


def split(
    groups: Mapping[tuple[str, bool], Keys], config: Mapping[str, Any], base: BaseWeights | None
) -> tuple[dict[tuple[str, bool], Keys], dict[str, list[Keys]]]:
    """The factors of layers as they are given, and those of parameters by module, from the innermost out."""
    layers: dict[tuple[str, bool], Keys] = {}
    levels: dict[str, dict[int, Keys]] = {}
    for (wrapped, embedding), keys in groups.items():
        depth = (len(wrapped) - len(module := _unwrapped(wrapped))) // len(_WRAPPED)
        weight = f"{module}.weight"
        of_base = base is None or base_name(base, base.architecture.canonical(weight))
        if config.get("target_parameters") and not embedding and (depth or not of_base or _is_named(weight, config)):
            levels.setdefault(module, {})[depth] = keys
        else:
            layers[wrapped, embedding] = keys
    return layers, {module: [held[depth] for depth in sorted(held, reverse=True)] for module, held in levels.items()}


def shares_in(
    owner: str, file: Any, levels: Mapping[str, Sequence[Keys]], config: Mapping[str, Any], base: BaseWeights | None
) -> dict[str, Share]:
    """What the factors of parameters do, by the name of the base's tensor.

    Raises:
        UserError: naming the parameter that the base lacks or has in another shape, or that has no factors.
    """
    targets = config.get("target_parameters") or ()
    if not targets:
        return {}
    if base is None:
        raise UserError(
            f"{owner}: adapts {min(targets)} by target_parameters, which is merged as an update of the base; "
            "give --base its folder"
        )
    trained = [part for module, keys in levels.items() for part in _parameters(owner, module, keys, config, base)]
    for target in targets:
        if not any(f".{part.name}".endswith(f".{target}") for part in trained):
            raise UserError(
                f"{owner}: has no LoRA factors of {target}, though target_parameters of its {ADAPTER_CONFIG} names it; "
                "save it again"
            )
    names = [part.name for part in trained]
    ranks = by_pattern(owner, config.get("rank_pattern"), names, config["r"])
    alphas = by_pattern(owner, config.get("alpha_pattern"), names, config["lora_alpha"])
    shares: dict[str, Share] = {}
    for part in trained:
        rank = int(ranks[part.name])
        scaling = alphas[part.name] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        turned = _turned(owner, file, part, rank)
        for name, (place, first, end) in part.places.items():
            # Of matrices that are turned over, the file's columns are the outputs.
            outputs = part.size[2] if turned else end
            shares[name] = Share(part.keys, part.size[0], rank, scaling, place, first, outputs, turned)
    return shares


def _unwrapped(module: str) -> str:
    """A module's name without what wraps it."""
    while module.endswith(_WRAPPED):
        module = module.removesuffix(_WRAPPED)
    return module


def _is_named(name: str, config: Mapping[str, Any]) -> bool:
    """Whether ``target_parameters`` names a parameter: as PEFT has it, by its whole name or from a dot to its end."""
    return any(f".{name}".endswith(f".{target}") for target in config.get("target_parameters") or ())


def _parameters(
    owner: str, module: str, levels: Sequence[Keys], config: Mapping[str, Any], base: BaseWeights
) -> Iterator[_Parameter]:
    """The parameters of a module that were trained, with their factors."""
    banks = base.architecture.banks
    named = [name for name in ("weight", *banks) if _is_named(f"{module}.{name}", config)]
    held = {name: places for name in named if (places := _places(base, module, name))}
    if len(held) != len(levels):
        raise UserError(
            f"{owner}: {module} has LoRA factors of {len(levels)} parameters, and {base} has {len(held)} that "
            f"target_parameters names; it belongs to another base, or {base.architecture.name} lacks them under banks"
        )
    for (name, places), keys in zip(held.items(), levels, strict=True):
        if len(keys) < 2:
            raise UserError(f"{owner}: {module}.{name} lacks one of its two LoRA factors")
        stored = base_name(base, next(iter(places)))
        assert stored is not None
        *stacked, _, columns = base.shapes[stored]
        last, _, rows = list(places.values())[-1]
        size = (stacked[0] if stacked else (last or 0) + 1, rows, columns)
        yield _Parameter(f"{module}.{name}", (keys["A"], keys["B"]), size, places)


def _places(base: BaseWeights, module: str, parameter: str) -> dict[str, tuple[int | None, int, int]]:
    """Where in a parameter the tensors are that the base has of it; none where it has no such parameter."""
    known = base.architecture
    name = known.canonical(f"{module}.{parameter}")
    if stored := base_name(base, name):
        shape = base.shapes[stored]
        return {name: (None if len(shape) == 3 else 0, 0, shape[-2])} if len(shape) in (2, 3) else {}
    places: dict[str, tuple[int | None, int, int]] = {}
    parts = known.banks.get(parameter, ())
    for place in count() if parts else ():
        names = [known.canonical(f"{module}.{place}.{part}.weight") for part in parts]
        if any(name not in base.shapes for name in names):
            break
        first = 0
        for name in names:
            places[name] = (place, first, first + base.shapes[name][0])
            first = places[name][2]
    return places


def _turned(owner: str, file: Any, part: _Parameter, rank: int) -> bool:
    """Whether the base's file has a bank's matrices as [inputs, outputs], as those of Qwen3-VL are: transformers turns
    what has not the model's shape.
    """
    matrices, rows, columns = part.size
    shapes = [file.get_slice(key).get_shape() for key in part.keys]
    for turned, (outputs, inputs) in ((False, (rows, columns)), (True, (columns, rows))):
        is_bank = None in {place for place, _, _ in part.places.values()}
        if shapes == [[matrices * rank, inputs], [outputs, rank * matrices]] and (is_bank or not turned):
            return turned
    a, b = ("x".join(map(str, shape)) for shape in shapes)
    size = f"{matrices} matrices of {rows}x{columns}" if matrices > 1 else f"{rows}x{columns}"
    raise UserError(
        f"{owner}: {part.name} has LoRA factors of {a} and {b}, which at rank {rank} do not fit the base's {size}; "
        "it belongs to another base"
    )
