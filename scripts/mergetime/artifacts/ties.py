"""Adapters of a base that ties its head to its embedding: which of the two an adapter moves, and how."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mergetime.artifacts.base_weights import BaseWeights
from mergetime.artifacts.tokens import TokenRows

if TYPE_CHECKING:
    import torch

    from mergetime.artifacts.adapters import Adapter


def with_tie(adapter: Adapter, base: BaseWeights) -> Adapter:
    """The adapter with what it does to a head that the base ties to its embedding.

    PEFT puts factors, and the copies of ``modules_to_save``, onto one of the two and leaves the other as it is, or onto
    both by themselves. What the file holds unasked is loaded into the tied weight, so that both move.
    """
    head, table = base.architecture.head, base.architecture.input_table
    if head is None or table is None or head in base.shapes or table not in base.shapes:
        return adapter
    whole, tokens = dict(adapter.whole), dict(adapter.tokens)
    copied = {name for name in (head, table) if name in whole and _is_saved(adapter, name)}
    if {head, table} <= tokens.keys() and _same_rows(adapter, tokens[head], tokens[table]):
        del tokens[head]
    if head in tokens:
        copied.add(head)
    if {head, table} <= whole.keys() and equal(adapter.tensor(head), adapter.tensor(table)):
        del whole[head]
        copied = set()
    elif head in whole and table not in whole and not copied:
        whole[table] = whole.pop(head)
    factored = {f"{module}.weight" for module in adapter.shapes} | adapter.shares.keys()
    moved = [name for name in (head, table) if name in factored or name in copied]
    if moved and table in tokens:
        # PEFT replaces the rows of a head that has factors, too.
        tokens.setdefault(head, tokens[table])
    apart = next(iter(moved), head if head in whole else None)
    beyond = dict(adapter.beyond)
    if apart is None and head in beyond:
        beyond.setdefault(table, beyond[head])
    return replace(adapter, whole=whole, tokens=tokens, beyond=beyond, apart=apart)


def _same_rows(adapter: Adapter, first: TokenRows, second: TokenRows) -> bool:
    """Whether the same rows were trained to the same numbers."""
    tensors = [adapter.file.get_tensor(tokens.key) for tokens in (first, second)]
    return first.places == second.places and equal(*tensors)


def _is_saved(adapter: Adapter, name: str) -> bool:
    """Whether ``modules_to_save`` names the module of a tensor."""
    module = name.rpartition(".")[0]
    return any(f".{module}".endswith(f".{saved}") for saved in adapter.config.get("modules_to_save") or ())


def equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors hold the same numbers, one of them perhaps rounded to the other's dtype."""
    import torch

    first, second = first.cpu(), second.cpu()
    return torch.equal(first, second.to(first.dtype)) or torch.equal(first.to(second.dtype), second)
