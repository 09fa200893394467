"""Models whose vocabularies differ by a few rows: a pad token or the tokens of a chat added, rows padded to a multiple.

The tensors of the vocabulary are the embeddings, the head and the head's bias that have as many rows as the base's
input embedding; a row is a token's, and the rows that two models have in common are the first ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from mergetime.core.errors import UserError

if TYPE_CHECKING:
    import torch

    from mergetime.artifacts.base_weights import BaseWeights

ExtraRows = Literal["refuse", "drop", "keep"]
EXTRA_ROWS: dict[ExtraRows, str] = {
    "refuse": "experts with other rows than the base are refused",
    "drop": "rows beyond the base's are left out",
    "keep": "they are appended to the checkpoint, each the plain mean over the experts that have it",
}
"""What is done with rows of the vocabulary that the base has not; rows that an expert lacks never move the base's."""


def difference(rows: int, others: int) -> str:
    """The reason and the mend where an expert has ``rows`` rows, and the base or another expert ``others``."""
    mend = (
        "--extra-rows drop leaves out rows beyond the base's, keep appends them to a checkpoint"
        if rows > others
        else "with --extra-rows drop, rows that an expert lacks count as unchanged"
    )
    return f"the vocabularies differ; merge_experts.py: {mend}"


def of_vocabulary(base: BaseWeights, name: str) -> bool:
    """Whether one of the base's tensors has a row for each token of its vocabulary."""
    table = base.architecture.input_table
    if table is None or not {table, name} <= base.shapes.keys() or not base.architecture.may_be_by_token(name):
        return False
    return base.shapes[name][:1] == base.shapes[table][:1]


def differs_by_rows(base: BaseWeights, name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor of this shape is the base's tensor for another number of tokens."""
    wanted = base.shapes[name]
    return of_vocabulary(base, name) and tuple(shape) != wanted and tuple(shape[1:]) == wanted[1:]


def rows_of(owner: str, sizes: Iterable[tuple[str, int]]) -> int | None:
    """How many rows the vocabulary of a model has; None where it has no tensor of the vocabulary.

    Args:
        owner: begins the error message.
        sizes: the tensors of its vocabulary, each with its rows.

    Raises:
        UserError: where two of them differ.
    """
    first: tuple[str, int] | None = None
    for name, rows in sizes:
        first = first or (name, rows)
        if rows != first[1]:
            raise UserError(
                f"{owner}: {first[0]} has {first[1]} rows and {name} has {rows}, though both have one for each token; "
                "save the expert again with one vocabulary"
            )
    return first[1] if first else None


def in_common(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two tensors, cut to the rows that both have."""
    if first.shape == second.shape:
        return first, second
    rows = min(len(first), len(second))
    return first[:rows], second[:rows]
