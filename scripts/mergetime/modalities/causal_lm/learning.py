"""Causal language models as they are trained and measured."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel

from mergetime.modalities.causal_lm.batches import collate, token_losses
from mergetime.modalities.causal_lm.encoding import Encoded
from mergetime.modalities.causal_lm.loading import load_base, projections
from mergetime.modalities.causal_lm.loss import causal_model, head_is_plain, head_of, predicted, summed_loss
from mergetime.modalities.learning import Activations, Batch, Objective

__all__ = [
    "LENGTH",
    "TASK_TYPE",
    "activations",
    "collate",
    "load_base",
    "logits",
    "losses_with",
    "objective",
    "padding",
    "projections",
    "size",
]

TASK_TYPE: str | None = "CAUSAL_LM"
LENGTH = "tokens"


def activations(model: nn.Module, examples: Sequence[Encoded]) -> Activations:
    """What the examples take: items are response tokens, and each has the logits of the whole vocabulary."""
    causal = causal_model(model)
    config = causal.config.get_text_config()
    head = head_of(causal)
    linear = [
        module
        for name, module in causal.named_modules()
        if isinstance(module, nn.Linear) and module is not head and ".lora_" not in name
    ]
    return Activations(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        features=sum(module.in_features + module.out_features for module in linear),
        linear_attention="linear_attention" in (getattr(config, "layer_types", None) or ()),
        classes=config.vocab_size,
        positions=max(example.length for example in examples),
        items=max(example.items for example in examples),
    )


def padding(model: nn.Module) -> int:
    """The model's padding token."""
    return causal_model(model).config.pad_token_id or 0


def size(batch: Batch) -> tuple[torch.Tensor, int]:
    """Tokens without padding, and with it."""
    mask = batch["attention_mask"]
    return mask.sum(), mask.numel()


def objective(model: nn.Module) -> Objective:
    """The loss on response tokens."""
    plain = head_is_plain(model)
    return Objective(partial(summed_loss, plain=plain), partial(predicted, plain=plain))


def logits(model: PreTrainedModel, example: Encoded) -> torch.Tensor:
    """The logits that predict the response's tokens: float32 [response tokens, vocabulary]."""
    ids = torch.tensor([example.ids], device=model.device)
    scores: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0]
    # The first token has nothing before it to be predicted from.
    return scores[max(example.prompt, 1) - 1 : -1].float()


def losses_with(
    model: PreTrainedModel, weights: Mapping[str, torch.Tensor], examples: Sequence[Encoded]
) -> torch.Tensor:
    """Of each chat the summed loss over its response tokens, and their number, with some parameters replaced."""
    padded = {name: tensor.to(model.device) for name, tensor in collate(examples, 0).items()}
    labels = padded.pop("labels")
    output = functional_call(model, dict(weights), (), {**padded, "use_cache": False})
    return token_losses(output.logits, labels)
