"""Opening the experts of a pool together, and refusing those that do not belong together."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from mergetime.architectures.architecture import MATRICES, Architecture
from mergetime.architectures.files import architecture_at, without_base
from mergetime.artifacts.adapters import Adapter, check_adapter, open_adapter, takes_apart
from mergetime.artifacts.checkpoints import Checkpoint, check_expert, check_roles, open_checkpoint
from mergetime.artifacts.files import read_json, safetensors_file
from mergetime.artifacts.forms import CHECKPOINT, DELTA, form_of
from mergetime.artifacts.names import MODEL_CONFIG
from mergetime.artifacts.vocabulary import ExtraRows, difference
from mergetime.core.errors import UserError
from mergetime.core.words import nearest
from mergetime.merging.pool import OpenPool
from mergetime.merging.vocabularies import check_kept

_PROBED = 4096
"""Entries of a tensor that tell whether an expert is related to the base."""
_UNRELATED = 1.0
"""A task vector longer than the base itself belongs to another base: fine-tuning moves weights by a few per cent."""


@contextmanager
def open_pool(
    experts: Sequence[tuple[str, Path]],
    *,
    base: Path | None = None,
    base_sha256: str | None = None,
    statistics: Mapping[str, Path] | None = None,
    device: str = "cpu",
    architecture: Path | None = None,
    extra_rows: ExtraRows = "refuse",
) -> Iterator[OpenPool]:
    """Open experts to be merged, after checking that they belong together.

    Without ``base_sha256`` the first recorded base counts.

    Args:
        experts: names and folders, of adapters or of full checkpoints.
        base: folder of the base; full checkpoints need it.
        base_sha256: digest of the base; experts that were trained on another are refused.
        statistics: expert to the safetensors file of what was measured on its data.
        device: where blocks are computed.
        architecture: a file that says what the base's tensors are for; None: that of the base's model type, or for
            adapters without a base what the names of their modules say.
        extra_rows: what is done with rows of the vocabulary that the base has not, or experts have not.

    Raises:
        UserError: naming the expert that is there twice, has another base, or has other tensors or shapes, or the
            model type or tensor of the base that is unknown.
    """
    if not experts:
        raise UserError("there is no expert to merge")
    _check_distinct(experts)
    folders = sorted((name, Path(folder)) for name, folder in experts)
    forms = {name: form_of(folder, f"expert {name} ({folder})") for name, folder in folders}
    for name, form in forms.items():
        if form == DELTA:
            raise UserError(f"expert {name}: is a task vector; give the folder of an adapter or of a full checkpoint")
    full = [name for name, form in forms.items() if form == CHECKPOINT]
    if full and len(full) < len(folders):
        other = next(name for name, _ in folders if name not in full)
        raise UserError(f"expert {full[0]} is a full checkpoint, expert {other} an adapter; merge one kind at a time")
    if full and base is None:
        raise UserError(
            f"expert {full[0]} is a full checkpoint, whose task vector needs the base: give --base a folder"
        )
    if extra_rows != "refuse" and base is None:
        raise UserError(
            f"--extra-rows {extra_rows}: how many rows the vocabulary has is said by the base; give --base its folder"
        )
    for name in statistics or ():
        if name not in dict(folders):
            raise UserError(f"statistics of {name}: that is no expert of this merge{nearest(name, dict(folders))}")
    for name, _ in folders if statistics else ():
        if name not in (statistics or ()):
            raise UserError(f"expert {name}: has no statistics")
    with ExitStack() as stack:
        given = _given(architecture, base)
        opened = stack.enter_context(open_checkpoint("base", base, given)) if base else None
        if opened:
            check_roles(opened)
        known = opened.architecture if opened else given or without_base()
        open_all = _checkpoints if full else _adapters
        pool = open_all(stack, folders, opened, known, extra_rows)
        files = (
            tuple(stack.enter_context(safetensors_file(statistics[name], f"expert {name}")) for name in pool.names)
            if statistics
            else ()
        )
        digest = base_sha256 or next((member.base_sha256 for member in pool.members if member.base_sha256), None)
        for member in pool.members:
            _check_base(member, digest)
            if statistics and member.vocabulary:
                raise UserError(
                    f"{member}: its vocabulary has {member.vocabulary} rows, and not as many as the base's, for which "
                    "data are measured; choose a method that needs none"
                )
        complete = replace(pool, statistics=files, device=device)
        check_kept(complete)
        _check_related(complete)
        yield complete


def _check_related(pool: OpenPool) -> None:
    """Refuse full checkpoints that are further from the base than the base is from 0, by a sample of every tensor."""
    if not pool.checkpoints or pool.base is None:
        return
    moved, whole = [0.0] * len(pool.names), 0.0
    for name in pool.shapes:
        stack = pool.tensor(name)
        # Norms are near 1 in every model, and a vision tower may be the base's own.
        if stack.role not in MATRICES:
            continue
        step = stack.entries / _PROBED
        squares = stack.sample(step).double().square().sum(dim=1).tolist()
        moved = [a + b for a, b in zip(moved, squares, strict=True)]
        whole += float(stack.base_sample(step).double().square().sum())
    for name, square in zip(pool.names, moved, strict=True):
        if math.isfinite(square) and square > _UNRELATED * whole > 0:
            raise UserError(
                f"expert {name}: is {math.sqrt(square / whole):.2g} times as far from {pool.base} as that is from 0; "
                "it was trained from another base"
            )


def _given(path: Path | None, base: Path | None) -> Architecture | None:
    """The architecture of a user's file, which must be for the base where there is one."""
    if path is None:
        return None
    return architecture_at(path, read_json(base / MODEL_CONFIG, f"base {base}") if base else None)


def _adapters(
    stack: ExitStack,
    folders: Sequence[tuple[str, Path]],
    base: Checkpoint | None,
    known: Architecture,
    extra_rows: ExtraRows,
) -> OpenPool:
    def opened(base: Checkpoint | None) -> tuple[Adapter, ...]:
        return tuple(
            stack.enter_context(open_adapter(name, folder, known, base, extra_rows)) for name, folder in folders
        )

    adapters = opened(base)
    if base and any(takes_apart(adapter, base) for adapter in adapters):
        base = base.split()
        adapters = opened(base)
    for adapter in adapters if base else ():
        assert base is not None
        check_adapter(adapter, base)
    _check_shapes(adapters, known)
    if base and any(adapter.apart for adapter in adapters):
        base, adapters = base.untied(), tuple(_untied(adapter, known) for adapter in adapters)
    return OpenPool(adapters, (), base, (), "cpu", known, extra_rows)


def _untied(adapter: Adapter, known: Architecture) -> Adapter:
    """An adapter for a base whose head was untied: what moved both of the two moves each of them."""
    head, table = known.head, known.input_table
    if head is None or table is None or adapter.apart:
        return adapter
    keys = (adapter.whole, adapter.beyond)
    whole, beyond = ({**by_name, head: by_name[table]} if table in by_name else by_name for by_name in keys)
    tokens = {head: adapter.tokens[table]} if table in adapter.tokens else {}
    return replace(adapter, whole=whole, beyond=beyond, tokens={**adapter.tokens, **tokens})


def _checkpoints(
    stack: ExitStack,
    folders: Sequence[tuple[str, Path]],
    base: Checkpoint | None,
    known: Architecture,
    extra_rows: ExtraRows,
) -> OpenPool:
    experts = tuple(stack.enter_context(open_checkpoint(name, folder, known)) for name, folder in folders)
    # Where one of them has the matrices of a bank apart, all are taken so.
    if base and any(expert.banks != base.banks for expert in experts):
        base, experts = base.split(), tuple(expert.split() for expert in experts)
    checked = tuple(check_expert(expert, base, extra_rows) if base else expert for expert in experts)
    return OpenPool((), checked, base, (), "cpu", known, extra_rows)


def _check_distinct(experts: Sequence[tuple[str, Path]]) -> None:
    names = [name for name, _ in experts]
    places: dict[Path, str] = {}
    for name, folder in experts:
        if names.count(name) > 1:
            raise UserError(f"expert {name} is given {names.count(name)} times; every expert counts once")
        # A loop of links is refused where it is read.
        resolved = Path(os.path.realpath(folder))
        if resolved in places:
            raise UserError(
                f"experts {places[resolved]} and {name} are the same folder {folder}; every expert counts once"
            )
        places[resolved] = name


def _check_base(member: Adapter | Checkpoint, base: str | None) -> None:
    if member.base_sha256 and base and member.base_sha256 != base:
        raise UserError(
            f"{member}: trained on base {member.base_sha256[:8]}..., this merge is for {base[:8]}...; "
            "retrain it or merge onto its own base"
        )


def _check_shapes(adapters: Sequence[Adapter], known: Architecture) -> None:
    """Refuse adapters that have a module in other sizes; one that lacks a module does not update it."""
    holders: dict[str, Adapter] = {}
    for adapter in adapters:
        for module, (outputs, _, inputs) in adapter.shapes.items():
            first = holders.setdefault(module, adapter)
            shape = first.shapes[module]
            if (shape[0], shape[2]) != (outputs, inputs):
                by_token = known.known_role(f"{module}.weight") in ("embedding", "head") and shape[2] == inputs
                mend = f"; {difference(outputs, shape[0])}; it needs --base, too" if by_token else ""
                raise UserError(
                    f"{adapter}: {module} is {outputs}x{inputs}, in {first} it is {shape[0]}x{shape[2]}{mend}"
                )
            if first.pairs[module].turned != adapter.pairs[module].turned:
                raise UserError(
                    f"{adapter}: fan_in_fan_out is not as in {first}, so {module} is inputs x outputs in one of them; "
                    "give --base the base's folder, which tells"
                )
