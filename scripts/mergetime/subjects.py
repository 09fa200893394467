"""Putting a subject (an expert or a merged model) on the base, and proof that it is there."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from mergetime.errors import UserError
from mergetime.merging.adapters import load_delta
from mergetime.merging.checkpoints import CONFIG, SINGLE, open_checkpoint
from mergetime.merging.files import ADAPTER_WEIGHTS, TASK_VECTOR
from mergetime.merging.policy import is_head, is_optional, kind_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PROBE = "How many days are in a week? Describe the sea, then write a function that adds 2 and 3."
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")


def is_checkpoint(folder: Path) -> bool:
    """Whether a subject is a whole model, and not an update of the base."""
    updates = (folder / ADAPTER_WEIGHTS, folder / TASK_VECTOR)
    return (folder / CONFIG).is_file() and not any(file.is_file() for file in updates)


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
        save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
        for file in sorted(base.iterdir()):
            if file.is_file() and not file.name.endswith(_WEIGHTS):
                shutil.copyfile(file, folder / file.name)
        yield folder


def check_materialised(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Refuse a checkpoint that does not compute, to the bit, what the model does.

    Raises:
        UserError: saying how far their logits are apart.
    """
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(
        folder, dtype=model.dtype, use_safetensors=True, trust_remote_code=False, local_files_only=True
    )
    torch.nn.Module.to(loaded, model.device).eval()
    difference = float((fingerprint(loaded, tokenizer) - fingerprint(model, tokenizer)).abs().max())
    if difference != 0.0:
        raise UserError(
            f"{folder}: the checkpoint for vLLM differs from the model by {difference:g} in its logits; set backend: hf"
        )


@torch.no_grad()
def fingerprint(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> torch.Tensor:
    """Logits on a fixed chat, on its text where there is no template: float32 [tokens, vocabulary], on the CPU."""
    turns = [{"role": "user", "content": _PROBE}]
    templated = tokenizer.chat_template is not None
    prompt = (
        tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        if templated
        else _PROBE
    )
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"].to(model.device)
    logits: torch.Tensor = model(input_ids=ids).logits
    return logits[0].float().cpu()


def check_applied(name: str, found: torch.Tensor, others: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """The largest difference of a subject's logits from each of the others'.

    Raises:
        UserError: if there is none: the subject was not applied, or is the other one.
    """
    differences = {other: float((found - logits).abs().max()) for other, logits in others.items()}
    same = [other for other, difference in differences.items() if difference == 0.0]
    if same:
        raise UserError(
            f"{name}: its logits are those of {', '.join(same)}; the weights were not applied, or are equal"
        )
    return differences
