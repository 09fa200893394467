"""Logits on a fixed text: what tells a model from another."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PROBE = "How many days are in a week? Describe the sea, then write a function that adds 2 and 3."


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
