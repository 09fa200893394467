"""Pools of experts with other rows of the vocabulary than the base: what becomes of these, in numbers and in words.

A row beyond the base's has no value there, so that no method has a task vector of it: the plain mean over the experts
that have the row is written, whatever the method.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergetime.artifacts.companions import token_names
from mergetime.artifacts.files import is_finite
from mergetime.artifacts.vocabulary import of_vocabulary
from mergetime.core.errors import UserError
from mergetime.merging.pool import OpenPool

if TYPE_CHECKING:
    import torch

_KEY = "vocab_size"


def changed_rows(pool: OpenPool) -> dict[str, dict[str, int]]:
    """The experts whose vocabulary has other rows than the base's: how many, and how many of them became what.

    Rows beyond the base's are ``dropped`` or ``kept``; those that the expert lacks are ``filled``: they count as
    unchanged.
    """
    changes = {}
    for member in pool.members:
        if member.vocabulary:
            more = member.vocabulary - _base_rows(pool)
            change = "filled" if more < 0 else "kept" if pool.extra_rows == "keep" else "dropped"
            changes[member.name] = {"rows": member.vocabulary, change: abs(more)}
    return changes


def in_words(changes: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A line that says what :func:`changed_rows` does; none where the vocabularies have the same rows."""
    words = {
        "dropped": "{} beyond the base's left out",
        "kept": "{} beyond the base's kept, as the mean over the experts that have the row",
        "filled": "{} that it lacks taken from the base",
    }
    parts = [
        f"{expert} has {change['rows']} rows, {text.format(change[kind])}"
        for expert, change in changes.items()
        for kind, text in words.items()
        if kind in change
    ]
    return [f"vocabulary: {'; '.join(parts)}"] if parts else []


def written_shapes(pool: OpenPool) -> dict[str, tuple[int, ...]]:
    """The shapes of the base's tensors as a checkpoint has them: with rows beyond the base's, where these are kept."""
    assert pool.base is not None, "a checkpoint is written with its base"
    rows = _rows(pool)
    if rows is None:
        return dict(pool.base.shapes)
    return {
        name: (rows, *shape[1:]) if of_vocabulary(pool.base, name) else shape
        for name, shape in pool.base.shapes.items()
    }


def rows_beyond(pool: OpenPool, name: str) -> torch.Tensor | None:
    """The rows of a tensor that a checkpoint has beyond the base's, in fp32; None where it has none.

    Raises:
        UserError: where an expert's are not finite.
    """
    import torch

    assert pool.base is not None, "a checkpoint is written with its base"
    rows = _rows(pool)
    if rows is None or not of_vocabulary(pool.base, name):
        return None
    first, *others = pool.base.shapes[name]
    total = torch.zeros(rows - first, *others)
    counts = torch.zeros(rows - first)
    for member in pool.members:
        held = member.rows_beyond(name, first)
        if held is None:
            continue
        if not is_finite(held):
            raise UserError(f"{member}: {name} holds NaN or infinite values beyond row {first - 1}; use another expert")
        total[: len(held)] += held
        counts[: len(held)] += 1
    return total / counts.view(-1, *(1 for _ in others))


def resized_config(config: Mapping[str, Any], pool: OpenPool) -> dict[str, Any]:
    """The config.json of the base with the number of rows that the checkpoint's vocabulary has."""
    rows, text = _rows(pool), config.get("text_config")
    if rows is None:
        return dict(config)
    resized = {**config, _KEY: rows} if _KEY in config or not isinstance(text, dict) else dict(config)
    if isinstance(text, dict) and (_KEY in text or _KEY not in config):
        resized["text_config"] = {**text, _KEY: rows}
    return resized


def check_kept(pool: OpenPool) -> None:
    """Refuse to keep rows that an expert has not in all tensors, or that stand for other tokens in another expert.

    Raises:
        UserError: naming the expert and the tensor, or the id and both tokens.
    """
    if _rows(pool) is None:
        return
    assert pool.base is not None
    names = [name for name in pool.base.shapes if of_vocabulary(pool.base, name)]
    first = _base_rows(pool)
    tokens: dict[int, tuple[str, str]] = {}
    for member in pool.members:
        if not member.vocabulary or member.vocabulary < first:
            continue
        for name in names:
            if member.rows_beyond(name, first) is None:
                raise UserError(
                    f"{member}: does not hold the rows of {name} beyond the base's {first}, though its vocabulary has "
                    f"{member.vocabulary}; use --extra-rows drop, or save the expert with the whole {name}"
                )
        _check_tokens(member.name, member.folder, range(first, member.vocabulary), tokens)


def _check_tokens(expert: str, folder: Path, ids: range, tokens: dict[int, tuple[str, str]]) -> None:
    """Refuse a token that is another one in an expert before; ``tokens`` are name and expert by id, and get these."""
    for place, token in sorted(token_names(folder).items()):
        if place not in ids:
            continue
        other, holder = tokens.setdefault(place, (token, expert))
        if other != token:
            raise UserError(
                f"--extra-rows keep: token {place} is {other!r} in expert {holder} and {token!r} in expert {expert}, "
                "so their rows cannot be averaged; use --extra-rows drop, or merge experts that added the same tokens"
            )


def _base_rows(pool: OpenPool) -> int:
    """How many rows the base's vocabulary has."""
    assert pool.base is not None, "only where there is a base may rows differ"
    table = pool.architecture.input_table
    assert table is not None, "only where there is an input embedding may rows differ"
    return pool.base.shapes[table][0]


def _rows(pool: OpenPool) -> int | None:
    """How many rows the vocabulary of a checkpoint has; None: as many as the base's."""
    if pool.extra_rows != "keep":
        return None
    rows = max((member.vocabulary or 0 for member in pool.members), default=0)
    return rows if rows > 0 and rows > _base_rows(pool) else None
