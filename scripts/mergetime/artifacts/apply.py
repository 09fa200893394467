"""Puts a subject (an expert or a merged model) on the base, and takes it off again."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mergetime.architectures.architecture import Architecture
from mergetime.architectures.files import architecture_of, without_base
from mergetime.artifacts.adapters import load_delta, open_adapter
from mergetime.artifacts.banks import matrix, stacked
from mergetime.artifacts.checkpoints import open_checkpoint
from mergetime.artifacts.forms import ADAPTER, CHECKPOINT, form_of
from mergetime.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def applied(model: "PreTrainedModel", folder: Path | None) -> Iterator[None]:
    """The model with the subject's weights; afterwards the base, bit for bit.

    Updates are added in fp32, and the sum is rounded once to the dtype of the base's parameter: added in a 16-bit
    dtype, small updates would be rounded away. A full checkpoint replaces the parameters, rounded to the same dtype.
    Where an adapter moves a tied head apart from the embedding, the model has a head of its own meanwhile.

    Args:
        model: the base, in the dtype that it is evaluated in.
        folder: of an artifact in any form of :data:`mergetime.artifacts.forms.FORMS`; None for the base itself.

    Raises:
        UserError: if the folder holds no form, or two; if the subject has a parameter that the base lacks, or has in
            another shape, or lacks one of the base's where it is a full checkpoint.
    """
    # As it is: what an adapter does to a head may depend on whether the base ties it.
    base = _Loaded(
        {name: parameter.data for name, parameter in named_parameters(model).items()}, architecture_in(model)
    )
    with _untied(model, folder):
        parameters = named_parameters(model)
        kept: dict[str, torch.Tensor] = {}
        try:
            for name, data in _weights(base, parameters, folder) if folder else ():
                kept[name] = parameters[name].data
                parameters[name].data = data
            yield
        finally:
            for name, data in kept.items():
                parameters[name].data = data


@dataclass(frozen=True)
class _Loaded:
    """A model in memory, as the base of an adapter."""

    parameters: Mapping[str, torch.Tensor]
    architecture: Architecture

    def __str__(self) -> str:
        return "the base that was loaded"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}

    def tensor(self, name: str) -> torch.Tensor:
        return self.parameters[name].data


def updates(model: "PreTrainedModel", folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """What an adapter or a task vector adds to the model's parameters: canonical names with dense fp32 updates."""
    return _updates(_Loaded(named_parameters(model), architecture_in(model)), folder)


def _updates(loaded: _Loaded, folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    known, shapes = loaded.architecture, loaded.shapes
    named = ((known.canonical(key), update) for key, update in load_delta(folder, loaded))
    return stacked(str(folder), known, shapes, named, lambda bank: torch.zeros(shapes[bank]))


@contextmanager
def _untied(model: "PreTrainedModel", folder: Path | None) -> Iterator[None]:
    """The model with a head of its own, if the folder holds an adapter that moves a tied one apart."""
    if folder is None or form_of(folder) != ADAPTER:
        yield
        return
    architecture = architecture_in(model)
    canonical = architecture.canonical
    with open_adapter(folder.name, folder, architecture, _Loaded(named_parameters(model), architecture)) as adapter:
        apart = adapter.apart
    named = (module for name, module in model.named_modules() if canonical(f"{name}.weight") == architecture.head)
    head = next(named, None) if apart else None
    if head is None:
        yield
        return
    tied = head.weight
    head.weight = torch.nn.Parameter(tied.detach().clone(), requires_grad=tied.requires_grad)
    try:
        yield
    finally:
        head.weight = tied


def named_parameters(model: "PreTrainedModel") -> dict[str, torch.nn.Parameter]:
    """The model's parameters by their canonical names, which are its own but where it nests a text model."""
    canonical = architecture_in(model).canonical
    return {canonical(name): parameter for name, parameter in model.named_parameters()}


def architecture_in(model: "PreTrainedModel") -> Architecture:
    """What the model's tensors are for. An update needs no more than names, so an unknown model will do there."""
    try:
        return architecture_of({"model_type": model.config.model_type})
    except UserError:
        return without_base()


def _weights(
    loaded: _Loaded, parameters: Mapping[str, torch.Tensor], folder: Path
) -> Iterator[tuple[str, torch.Tensor]]:
    """The subject's parameters by name, in the dtype and on the device of the base's."""
    if form_of(folder) == CHECKPOINT:
        yield from _replacements(parameters, folder)
        return
    for name, update in _updates(loaded, folder):
        _check(parameters, name, tuple(update.shape), folder)
        base = parameters[name]
        yield name, (base.float() + update.to(base.device)).to(base.dtype)


def _replacements(parameters: Mapping[str, torch.Tensor], folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    with open_checkpoint(folder.name, folder) as checkpoint:
        known = checkpoint.architecture
        # A model may be loaded without what its modality does not use, such as a language model's vision tower.
        names = [name for name in checkpoint.shapes if name in parameters or not known.may_lack(name)]
        shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        for name in names:
            if matrix(parameters, known, name) is None:
                _check(parameters, name, checkpoint.shapes[name], folder, known.head)
        for name, shape in shapes.items():
            wanted = [name] if name in checkpoint.shapes else known.matrices(name, shape) or [name]
            for lacked in wanted:
                if lacked not in checkpoint.shapes and not known.may_lack(lacked):
                    raise UserError(
                        f"{folder}: lacks {lacked}, which the base has; it is incomplete, or of another base"
                    )
        named = ((name, checkpoint.tensor(name)) for name in names)
        for name, tensor in stacked(str(folder), known, shapes, named, lambda bank: torch.empty(shapes[bank])):
            _check(parameters, name, tuple(tensor.shape), folder)
            base = parameters[name]
            # A view of the mapped file may have the right dtype already, but the file is closed afterwards.
            yield name, tensor.to(base.device, base.dtype, copy=True)


def _check(
    parameters: Mapping[str, torch.Tensor], name: str, shape: tuple[int, ...], folder: Path, head: str | None = None
) -> None:
    if name not in parameters:
        hint = "its head is untied, the base's is tied" if name == head else "it belongs to another base"
        raise UserError(f"{folder}: has {name}, which the base does not have; {hint}")
    base_shape = tuple(parameters[name].shape)
    if base_shape != shape:
        raise UserError(f"{folder}: {name} has shape {shape}, the base's is {base_shape}; it belongs to another base")
