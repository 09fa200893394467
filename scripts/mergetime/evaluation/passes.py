"""What an evaluation asks of its model: the tokens of all forward passes, and the seconds that these take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Passes:
    """The forward passes of a model.

    Attributes:
        read_tokens: tokens of prompts and of texts whose likelihood is computed. Padding is left out where the pass has
            a mask; lm-eval's likelihoods have none, and are sorted by length.
        read_s: seconds of these passes.
        generated_tokens: tokens of the passes after a prompt, one for each sequence of a batch until its last one ends.
        generated_s: seconds of these passes.
    """

    read_tokens: int = 0
    read_s: float = 0.0
    generated_tokens: int = 0
    generated_s: float = 0.0


@contextmanager
def counted(model: "PreTrainedModel") -> Iterator[Passes]:
    """Count the passes of ``model`` and of its decoder by itself, until the context ends.

    On a GPU each pass is waited for, so that seconds are those of its kernels too; generating waits after each token
    anyway. What another program computes, such as vLLM, is not counted.
    """
    passes = Passes()
    begun: list[float] = []

    def begin(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        # A decoder inside its model is part of the model's pass.
        begun.append(_now() if not begun else 0.0)

    def end(_: Any, given: tuple[Any, ...], named: dict[str, Any], returned: Any) -> None:
        started = begun.pop()
        if begun:
            return
        tokens = named.get("input_ids", given[0] if given else next(iter(named.values())))
        if named.get("past_key_values") is not None and tokens.shape[1] == 1:
            passes.generated_tokens += tokens.numel()
            passes.generated_s += _now() - started
        else:
            passes.read_tokens += _without_padding(tokens, named.get("attention_mask"))
            passes.read_s += _now() - started

    handles: list[Any] = []
    for module in {id(module): module for module in (model, model.base_model)}.values():
        handles.append(module.register_forward_pre_hook(begin, with_kwargs=True))
        handles.append(module.register_forward_hook(end, with_kwargs=True, always_call=True))
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def _without_padding(tokens: torch.Tensor, mask: torch.Tensor | None) -> int:
    return int(mask.sum()) if mask is not None and mask.shape == tokens.shape else tokens.numel()


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()
