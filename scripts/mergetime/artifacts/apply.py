"""Puts a subject (an expert or a merged model) on the base, and takes it off again."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mergetime.architectures.policy import is_head, is_optional, kind_of
from mergetime.artifacts.adapters import load_delta
from mergetime.artifacts.checkpoints import open_checkpoint
from mergetime.artifacts.forms import CHECKPOINT, form_of
from mergetime.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def applied(model: "PreTrainedModel", folder: Path | None) -> Iterator[None]:
    """The model with the subject's weights; afterwards the base, bit for bit.

    Updates are added in fp32, and the sum is rounded once to the dtype of the base's parameter: added in a 16-bit
    dtype, small updates would be rounded away. A full checkpoint replaces the parameters, rounded to the same dtype.

    Args:
        model: the base, in the dtype that it is evaluated in.
        folder: of an artifact in any form of :data:`mergetime.artifacts.forms.FORMS`; None for the base itself.

    Raises:
        UserError: if the folder holds no form, or two; if the subject has a parameter that the base lacks, or has in
            another shape, or lacks one of the base's where it is a full checkpoint.
    """
    parameters = dict(model.named_parameters())
    kept: dict[str, torch.Tensor] = {}
    try:
        for name, data in _weights(parameters, folder) if folder else ():
            kept[name] = parameters[name].data
            parameters[name].data = data
        yield
    finally:
        for name, data in kept.items():
            parameters[name].data = data


def _weights(parameters: Mapping[str, torch.Tensor], folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The subject's parameters by name, in the dtype and on the device of the base's."""
    if form_of(folder) == CHECKPOINT:
        yield from _replacements(parameters, folder)
        return
    for name, update in load_delta(folder):
        _check(parameters, name, tuple(update.shape), folder)
        base = parameters[name]
        yield name, (base.float() + update.to(base.device)).to(base.dtype)


def _replacements(parameters: Mapping[str, torch.Tensor], folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    with open_checkpoint(folder.name, folder) as checkpoint:
        # Vision towers and the like are not of the text model, which alone is evaluated.
        names = [name for name, shape in checkpoint.shapes.items() if not is_optional(kind_of(name, shape))]
        for name in names:
            _check(parameters, name, checkpoint.shapes[name], folder)
        for name in parameters:
            if name not in checkpoint.shapes:
                raise UserError(f"{folder}: lacks {name}, which the base has; it is incomplete, or of another base")
        for name in names:
            base = parameters[name]
            # A view of the mapped file may have the right dtype already, but the file is closed afterwards.
            yield name, checkpoint.tensor(name).to(base.device, base.dtype, copy=True)


def _check(parameters: Mapping[str, torch.Tensor], name: str, shape: tuple[int, ...], folder: Path) -> None:
    if name not in parameters:
        hint = "its head is untied, the base's is tied" if is_head(name) else "it belongs to another base"
        raise UserError(f"{folder}: has {name}, which the base does not have; {hint}")
    found = tuple(parameters[name].shape)
    if found != shape:
        raise UserError(f"{folder}: {name} has shape {shape}, the base's is {found}; it belongs to another base")
