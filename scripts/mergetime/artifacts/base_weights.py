"""The weights that an adapter is for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from mergetime.architectures.architecture import Architecture

if TYPE_CHECKING:
    import torch


class BaseWeights(Protocol):
    """The weights that an adapter is for: an open checkpoint, or a model in memory, by canonical names."""

    @property
    def architecture(self) -> Architecture:
        """What the tensors are for."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes of all weights; a head that is tied to the embedding is none of them."""

    def tensor(self, name: str) -> torch.Tensor:
        """One of the weights, not to be written to."""


def base_name(base: BaseWeights, name: str) -> str | None:
    """What a base calls the tensor with this name: a head that it ties is its embedding; None where it has none."""
    if name in base.shapes:
        return name
    table = base.architecture.input_table
    return table if base.architecture.is_head(name) and table in base.shapes else None
