"""How many examples one forward pass can take: an estimate of a GPU's memory, and the choice that follows from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mergetime.modalities import kernels
from mergetime.modalities.learning import LOGITS, Learning

GRADIENT_AND_ADAM = 12
"""Bytes a trainable weight: gradient and two moments of Adam, all in float32."""

AUTOCAST = 2
"""Bytes a trainable weight: its bfloat16 copy, which autocast keeps from forward to backward."""

SAVED = 1.5
"""Numbers that a position leaves for the backward pass, as a multiple of the inputs and outputs of all projections.

Counted with torch's hooks on saved tensors, in bfloat16 with LoRA: 1.4 for a Llama.
"""

SAVED_LINEAR_ATTENTION = 4.0
"""The same where layers have linear attention in PyTorch's own operations: 3.8 for Qwen3.5 at 0.8B, 3.5 at 4B."""

SAVED_FUSED_LINEAR_ATTENTION = 2.2
"""The same where fused kernels compute it: 2.0 for Qwen3.5 at 0.8B, 1.9 at 4B.

Counted with what ``ChunkGatedDeltaRuleFunction`` of fla-core 0.6.0 saves (``ops/gated_delta_rule/chunk.py``): queries
and keys, normalised, with their norms, values, both gates, and a row of 64 for each head; it computes the rest again.
"""

RESERVE = 3 * 2**29
"""Bytes for the CUDA context, the workspaces of its libraries and kernels' scratch: 1.5 GiB."""

USABLE = 0.9
"""Share of the GPU's memory to plan with; the rest is lost between blocks of the allocator."""


@dataclass(frozen=True)
class Load:
    """What a run has to hold in memory.

    ``weights`` are bytes as stored (4-bit weights at half a byte); ``trainable`` counts weights; ``features`` are the
    inputs and outputs of all projections, summed; ``saved`` is the factor on them; an item has ``classes`` logits;
    ``positions``, rounded up as those of batches, and ``items`` are of the longest example; ``width`` is bytes per
    number of an activation.
    """

    weights: int
    trainable: int
    layers: int
    hidden: int
    features: int
    saved: float
    classes: int
    positions: int
    items: int
    width: int


def load_of(
    learning: Learning, model: nn.Module, examples: Sequence[Any], *, bfloat16: bool, multiple: int = 1
) -> Load:
    """The :class:`Load` of ``model``, adapters included, on ``examples`` in batches of lengths rounded up."""
    activations = learning.activations(model, examples)
    saved = SAVED
    if activations.linear_attention:
        saved = SAVED_FUSED_LINEAR_ATTENTION if kernels.fuses_linear_attention(model) else SAVED_LINEAR_ATTENTION
    return Load(
        weights=sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
        trainable=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        layers=activations.layers,
        hidden=activations.hidden,
        features=activations.features,
        saved=saved,
        classes=activations.classes,
        positions=-(-activations.positions // multiple) * multiple,
        items=activations.items,
        width=2 if bfloat16 else 4,
    )


def estimated_bytes(load: Load, examples: int, *, checkpointing: bool) -> int:
    """The peak of a training step on ``examples`` of the longest kind at a time.

    Weights, gradients and the optimizer; what every position leaves for the backward pass (with ``checkpointing`` the
    inputs of all layers, and one layer at a time in full); logits of all items with their gradient, in float32 and in
    the width of activations, up to :data:`~mergetime.modalities.learning.LOGITS` of them.
    """
    fixed = load.weights + load.trainable * (GRADIENT_AND_ADAM + (AUTOCAST if load.width == 2 else 0)) + RESERVE
    in_full = load.saved * load.features
    position = in_full / load.layers + load.layers * load.hidden if checkpointing else in_full
    logits = min(examples * load.items * load.classes, LOGITS) * 2 * (4 + load.width)
    return round(fixed + examples * load.positions * position * load.width + logits)


@dataclass(frozen=True)
class Fit:
    """Examples per forward pass, a divisor of the effective batch, and whether activations are computed again."""

    micro_batch_size: int
    checkpointing: bool


def divisors(batch_size: int) -> list[int]:
    """The divisors of ``batch_size``, the largest first."""
    return [number for number in range(batch_size, 0, -1) if batch_size % number == 0]


def choose(
    load: Load, batch_size: int, available: int | None, *, micro_batch_size: int | None, checkpointing: bool | None
) -> Fit:
    """What is asked for, and where nothing is, what fits into ``available`` bytes (None: a CPU, where all does).

    Activations are recomputed only where one example would not fit otherwise; the micro-batch is the largest divisor
    of the effective batch that fits, and 1 where by this estimate none does.
    """
    if available is None:
        return Fit(micro_batch_size or batch_size, bool(checkpointing))
    usable = USABLE * available
    if checkpointing is None:
        checkpointing = estimated_bytes(load, micro_batch_size or 1, checkpointing=False) > usable
    fitting = (n for n in divisors(batch_size) if estimated_bytes(load, n, checkpointing=checkpointing) <= usable)
    return Fit(micro_batch_size or next(fitting, 1), checkpointing)


def smaller(fit: Fit, batch_size: int) -> Fit | None:
    """The next one to try after the GPU ran out of memory: half the examples, or the next divisor; None below 1."""
    return next((Fit(n, fit.checkpointing) for n in divisors(batch_size) if n <= fit.micro_batch_size // 2), None)


def available_bytes() -> int | None:
    """Memory of the GPU that no other program holds; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    free, _ = torch.cuda.mem_get_info()
    return int(free + torch.cuda.memory_reserved())
