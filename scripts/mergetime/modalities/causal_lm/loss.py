"""The loss on response tokens, without logits of prompt tokens and padding.

At Qwen3.5's vocabulary of 248,320 the logits of one token take a megabyte in float32, so the head is applied to the
positions that predict a response token alone, and to a bounded number of them at a time.
"""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from mergetime.modalities.causal_lm.encoding import IGNORED
from mergetime.modalities.learning import LOGITS, Batch, Predicted


def causal_model(model: nn.Module) -> PreTrainedModel:
    """The causal language model inside ``model``, which may carry adapters."""
    inner: Any = model
    if hasattr(model, "get_base_model"):
        inner = inner.get_base_model()
    if not isinstance(inner, PreTrainedModel):
        raise TypeError(f"{type(inner).__name__} is no transformers model")
    return inner


def head_of(causal: PreTrainedModel) -> nn.Module:
    """What makes logits of hidden states."""
    head = causal.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise TypeError(f"{type(causal).__name__} has no output embeddings")
    return head


@torch.no_grad()
def head_is_plain(model: nn.Module) -> bool:
    """Whether logits are the head of the last hidden states and nothing else.

    Gemma 2 caps them, Cohere and Granite scale them. One forward pass of four tokens tells, whatever the architecture.
    """
    causal = causal_model(model)
    seen: dict[str, torch.Tensor] = {}
    handles = [
        causal.base_model.register_forward_hook(lambda _, __, out: seen.update(hidden=out[0])),
        head_of(causal).register_forward_hook(lambda _, given, out: seen.update(given=given[0], logits=out)),
    ]
    training = model.training
    model.eval()
    ids = torch.arange(1, 5, device=next(model.parameters()).device)[None]
    try:
        logits = causal(input_ids=ids, use_cache=False).logits
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return (
        {"hidden", "logits"} <= set(seen)
        and torch.equal(seen["hidden"], seen["given"])
        and torch.equal(seen["logits"], logits)
    )


def predicting_states(model: nn.Module, batch: Batch, *, plain: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the decoder, and pick the positions whose next token is a response token.

    Args:
        model: a causal language model, or one with adapters.
        batch: ``input_ids``, ``attention_mask`` and ``labels``, each int64 [examples, tokens].
        plain: what :func:`head_is_plain` says of the model.

    Returns:
        the last hidden states [positions, hidden] where ``plain``, else the logits [positions, vocabulary]; and the
        tokens that follow, int64 [positions].
    """
    causal = causal_model(model)
    given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    states = causal.base_model(**given).last_hidden_state if plain else causal(**given).logits
    following = batch["labels"][:, 1:]
    chosen = following != IGNORED
    return states[:, :-1][chosen], following[chosen]


def summed_loss(model: nn.Module, batch: Batch, *, plain: bool) -> torch.Tensor:
    """The sum of the loss over a batch's response tokens, with its gradient: float32 [], in nats.

    Divided by the response tokens of the effective batch it is transformers' own loss. Where the logits would take
    more than :data:`~mergetime.modalities.learning.LOGITS`, they are made in chunks, and again in the backward pass.
    """
    states, tokens = predicting_states(model, batch, plain=plain)
    head = head_of(causal_model(model)) if plain else nn.Identity()

    def loss(states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(head(states).float(), tokens, reduction="sum")

    rows = _rows(model)
    if len(tokens) <= rows or not plain:
        return loss(states, tokens)
    chunks = zip(states.split(rows), tokens.split(rows), strict=True)
    return torch.stack([checkpoint(loss, some, next_ones, use_reentrant=False) for some, next_ones in chunks]).sum()


@torch.no_grad()
def predicted(model: nn.Module, batch: Batch, *, plain: bool) -> Predicted:
    """Loss and rightness of every response token of a batch, without gradients."""
    states, tokens = predicting_states(model, batch, plain=plain)
    head = head_of(causal_model(model)) if plain else nn.Identity()
    losses, right = [states.new_empty(0, dtype=torch.float32)], [tokens.new_empty(0, dtype=torch.bool)]
    rows = _rows(model)
    for some, next_ones in zip(states.split(rows), tokens.split(rows), strict=True):
        logits = head(some).float()
        losses.append(nn.functional.cross_entropy(logits, next_ones, reduction="none"))
        right.append(logits.argmax(-1) == next_ones)
    examples = (batch["labels"][:, 1:] != IGNORED).nonzero()[:, 0]
    return Predicted(torch.cat(losses), torch.cat(right), examples)


def _rows(model: nn.Module) -> int:
    vocabulary: int = causal_model(model).config.get_text_config().vocab_size
    return max(1, LOGITS // vocabulary)
