"""Banks: transformers stacks the matrices of a model's experts when it loads them, checkpoints may hold them apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from mergetime.architectures.architecture import Architecture
from mergetime.core.errors import UserError

if TYPE_CHECKING:
    import torch


def matrix(tensors: Mapping[str, torch.Tensor], known: Architecture, name: str) -> torch.Tensor | None:
    """The tensor of a loaded model by its canonical name in a checkpoint: a view of a bank where it lies in one."""
    place = known.place(name)
    if name in tensors or place is None or place.bank not in tensors:
        return tensors.get(name)
    bank = tensors[place.bank]
    return bank[place.expert, place.rows(bank.shape[1])] if place.expert < len(bank) else None


def stacked(
    owner: str,
    known: Architecture,
    shapes: Mapping[str, tuple[int, ...]],
    named: Iterable[tuple[str, torch.Tensor]],
    start: Callable[[str], torch.Tensor],
) -> Iterator[tuple[str, torch.Tensor]]:
    """The named tensors with the matrices of banks stacked, as a loaded model has them.

    A bank comes as soon as all of its matrices are there, or at the end.

    Args:
        owner: begins the error message.
        known: what the tensors are for.
        shapes: of the loaded model's parameters, by canonical names.
        named: canonical names of a checkpoint with tensors.
        start: what a bank is where no matrix of it is named: a new tensor, which is written to.

    Raises:
        UserError: where a matrix does not fit its bank.
    """
    banks: dict[str, torch.Tensor] = {}
    left: dict[str, int] = {}
    for name, tensor in named:
        place = known.place(name)
        if name in shapes or place is None or place.bank not in shapes:
            yield name, tensor
            continue
        experts, height, width = shapes[place.bank]
        if place.expert >= experts or tuple(tensor.shape) != (height // place.parts, width):
            raise UserError(
                f"{owner}: {name} has shape {tuple(tensor.shape)}, the base's {place.bank} is {experts} experts of "
                f"{height}x{width}; it belongs to another base"
            )
        if place.bank not in banks:
            banks[place.bank], left[place.bank] = start(place.bank), experts * place.parts
        banks[place.bank][place.expert, place.rows(height)] = tensor
        left[place.bank] -= 1
        if not left[place.bank]:
            yield place.bank, banks.pop(place.bank)
    yield from banks.items()
