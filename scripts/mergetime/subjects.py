"""Putting a subject (an expert or a merged model) on the base, and proof that it is there."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mergetime.errors import UserError
from mergetime.merging.adapters import load_delta

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PROBE = "How many days are in a week? Describe the sea, then write a function that adds 2 and 3."


@contextmanager
def applied(model: "PreTrainedModel", folder: Path | None) -> Iterator[None]:
    """The model with the subject's update added to its weights in fp32; afterwards the base, bit for bit.

    Args:
        model: the base, in fp32: added in a 16-bit dtype, small updates would be rounded away.
        folder: an adapter or a task vector; None for the base itself.

    Raises:
        UserError: if the subject updates a parameter that the base lacks, or has in another shape.
    """
    parameters = dict(model.named_parameters())
    kept: dict[str, torch.Tensor] = {}
    try:
        for name, update in load_delta(folder) if folder else ():
            if name not in parameters:
                raise UserError(f"{folder}: updates {name}, which the base does not have; it belongs to another base")
            parameter = parameters[name]
            if parameter.shape != update.shape:
                shapes = f"{tuple(update.shape)}, the base's is {tuple(parameter.shape)}"
                raise UserError(f"{folder}: {name} has shape {shapes}; it belongs to another base")
            kept[name] = parameter.data
            parameter.data = parameter.data + update.to(parameter.device)
        yield
    finally:
        for name, data in kept.items():
            parameters[name].data = data


@torch.no_grad()
def fingerprint(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> torch.Tensor:
    """Logits on a fixed chat: float32 [tokens, vocabulary], on the CPU."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": _PROBE}], tokenize=False, add_generation_prompt=True, enable_thinking=False
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
