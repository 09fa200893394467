"""Putting a subject (an expert or a merged model) on the base, and proof that it is there."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from mergetime.architectures.policy import is_head, is_optional, kind_of
from mergetime.artifacts.adapters import load_delta
from mergetime.artifacts.checkpoints import open_checkpoint
from mergetime.artifacts.names import ADAPTER_WEIGHTS, MODEL_CONFIG, MODEL_WEIGHTS, TASK_VECTOR
from mergetime.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")


def is_checkpoint(folder: Path) -> bool:
    """Whether a subject is a whole model, and not an update of the base."""
    updates = (folder / ADAPTER_WEIGHTS, folder / TASK_VECTOR)
    return (folder / MODEL_CONFIG).is_file() and not any(file.is_file() for file in updates)


@contextmanager
def applied(model: "PreTrainedModel", folder: Path | None) -> Iterator[None]:
    """The model with the subject's weights; afterwards the base, bit for bit.

    Updates are added in fp32, and the sum is rounded once to the dtype of the base's parameter: added in a 16-bit
    dtype, small updates would be rounded away. A full checkpoint replaces the parameters, rounded to the same dtype.

    Args:
        model: the base, in the dtype that it is evaluated in.
        folder: an adapter, a task vector, or a full checkpoint (config.json beside its safetensors); None for the base
            itself.

    Raises:
        UserError: if the subject has a parameter that the base lacks, or has in another shape, or lacks one of the
            base's where it is a full checkpoint.
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
    if is_checkpoint(folder):
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


@contextmanager
def materialised(model: "PreTrainedModel", base: Path) -> Iterator[Path]:
    """The model as it is now, as a checkpoint in a temporary folder that is removed afterwards.

    It has the layout of the base, with the text model's parameters in place of the base's: what loads a multimodal base
    need not know the text model by itself.

    Args:
        model: the base with a subject applied.
        base: folder of the base: its config and tokenizer are copied, its other tensors kept.
    """
    from safetensors.torch import save_file

    parameters = dict(model.named_parameters())
    with TemporaryDirectory(prefix="mergetime-") as scratch, open_checkpoint("base", base) as opened:
        folder = Path(scratch)
        tensors = {
            opened.keys[name]: parameters[name].detach().cpu().contiguous()
            if name in parameters
            else opened.tensor(name)
            for name in opened.keys_kept
        }
        save_file(tensors, folder / MODEL_WEIGHTS, metadata={"format": "pt"})
        for file in sorted(base.iterdir()):
            if file.is_file() and not file.name.endswith(_WEIGHTS):
                shutil.copyfile(file, folder / file.name)
        yield folder
