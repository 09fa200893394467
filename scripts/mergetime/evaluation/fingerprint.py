"""Proof that a subject is on the base: its logits on a fixed text differ from those of the base and the members."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mergetime.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PROBE = "How many days are in a week? Describe the sea, then write a function that adds 2 and 3."


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
