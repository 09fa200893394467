"""What work costs, as pure functions: operations, bytes and seconds. P is the number of a model's parameters.

A forward pass takes 2 P operations a token (one multiplication and one addition a weight), a backward pass twice that:
2 P for the gradients of the activations, 2 P for those of the weights (Kaplan et al. 2020, arXiv 2001.08361, section
2.1). Attention over the context is left out, which for a few hundred tokens is some percent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mergetime.config.experts import Durations, Training
from mergetime.core.quarters import QUARTERS
from mergetime.training.durations import MultiplesOfOptimum
from mergetime.training.optimum import Point

DType = Literal["float32", "bfloat16"]
BYTES = {"float32": 4, "bfloat16": 2}
FLOAT32_RATE = 1 / 16
"""Of a GPU's rate in bfloat16 without TF32, which PyTorch leaves off: 19.5 of 312 TFLOP/s on an A100, 67 of 989 on an
H100 (NVIDIA's data sheets)."""
MERGE_START_S = 4.0
MERGE_ENTRIES_PER_S = 85e6
"""Entries of all members together, on one core: a dense TIES of five adapters of a 4B base, the dearest case of
tests/benchmarks/merge, merges 5 x 3.5e9 entries in 207 CPU seconds."""


@dataclass(frozen=True)
class Rate:
    """Operations and bytes a second: of a chip at most, or as far as work gets."""

    operations_per_s: float
    bytes_per_s: float


def reached(peak: Rate, utilization: float, dtype: DType, *, gpu: bool = True) -> Rate:
    """A share of a chip's peaks, for arithmetic in ``dtype``."""
    return Rate(peak.operations_per_s * utilization * dtype_share(dtype, gpu=gpu), peak.bytes_per_s * utilization)


def dtype_share(dtype: DType, *, gpu: bool) -> float:
    """The part of a chip's peak that is there for arithmetic in ``dtype``; a CPU's is that of float32."""
    return FLOAT32_RATE if gpu and dtype == "float32" else 1.0


def forward_operations(parameters: int, tokens: float) -> float:
    """Operations of forward passes over so many tokens: 2 P each."""
    return 2.0 * parameters * tokens


def training_operations(
    parameters: int, tokens: float, *, every_weight: bool, gradient_checkpointing: bool = False
) -> float:
    """Operations of training on so many tokens.

    6 P a token where every weight learns; 4 P where LoRA factors alone learn, since gradients pass through the base but
    none of its weights needs one; 2 P more where activations are computed again in the backward pass.
    """
    per_token = (6.0 if every_weight else 4.0) + (2.0 if gradient_checkpointing else 0.0)
    return per_token * parameters * tokens


def generation_seconds(
    parameters: int, weight_bytes: float, *, items: int, new_tokens: float, batch_size: int, rate: Rate
) -> float:
    """Seconds to generate ``new_tokens`` for every item, in batches, prompts not counted.

    A step gives each item of the batch a token. It takes the larger of two times: that of its 2 P operations an item,
    and that of reading all weights once, which is what bounds small batches. The cache of keys is left out.
    """
    steps = math.ceil(items / batch_size) * new_tokens
    operations = forward_operations(parameters, min(batch_size, items))
    return steps * max(operations / rate.operations_per_s, weight_bytes / rate.bytes_per_s)


def merge_seconds(entries: float) -> float:
    """Wall seconds of a merge on one core, ``entries`` being those of all members together."""
    return MERGE_START_S + entries / MERGE_ENTRIES_PER_S


def adapter_bytes(adapter_parameters: int, rank: int) -> float:
    """Bytes of a LoRA adapter in float32; ``adapter_parameters`` are those of rank 1."""
    return 4.0 * adapter_parameters * rank


def guessed_optimum(train: Training, multiples: Sequence[float], examples: int, epochs: float) -> int:
    """T* in optimizer steps before it is known: ``epochs`` passes over the examples, on the grid of validations.

    At least one validation, and so that the longest multiple fits into ``max_steps``.
    """
    every = QUARTERS * train.save_every
    longest = max([1.0, *multiples])
    steps = round(epochs * examples / train.batch_size / every) * every
    most = int(train.max_steps / longest) // every * every
    return max(every, min(steps, most))


def last_step(train: Training, durations: Durations, optimum: int) -> int:
    """The optimizer step that a run with this T* ends at.

    With multiples of T*, the first validation at or after the longest; with fixed steps, the last; with rules of early
    stopping, when the latest has stopped: after its patience, or after as many plateaus as bring the rate below its
    threshold.
    """
    every = QUARTERS * train.save_every
    if durations.multiples_of_optimum:
        steps = math.ceil(max([1.0, *durations.multiples_of_optimum]) * optimum / every) * every
    elif durations.steps:
        steps = durations.steps[-1]
    else:
        rules = list((durations.early_stopping or {}).values())
        steps, every = optimum, math.gcd(*(rule.every for rule in rules))
        for rule in rules:
            waited = (rule.patience or 0) * rule.every
            if rule.rate_below:
                falls = math.log(rule.rate_below / train.learning_rate) / math.log(train.plateau.factor)
                waited = (math.floor(falls) + 1) * train.plateau.patience * every
            steps = max(steps, optimum + waited)
    return min(steps, train.max_steps)


def validations(train: Training, durations: Durations, steps: int) -> int:
    """How often a run of so many steps computes the validation loss, before the first step included."""
    rules = (durations.early_stopping or {}).values()
    every = math.gcd(*(rule.every for rule in rules)) if rules else QUARTERS * train.save_every
    return 1 + steps // every


def experts_at_once(train: Training, durations: Durations, optimum: int, steps: int) -> int:
    """The most experts that a run of so many steps has on disk at a time: those of steps that may still be kept.

    For multiples of T* this follows a loss that falls until T* and rises after it, looked at ten times on the way;
    fixed steps and rules of early stopping need their own experts and the newest.
    """
    if not durations.multiples_of_optimum:
        return len(durations.steps or durations.early_stopping or {}) + 1
    kept = MultiplesOfOptimum(tuple(durations.multiples_of_optimum), train.save_every, train.max_steps)
    curve = [Point(step, abs(step - optimum)) for step in range(0, steps + 1, kept.every)]
    most = 0
    for seen in {max(2, round(len(curve) * part / 10)) for part in range(1, 11)}:
        saved = range(train.save_every, curve[:seen][-1].step + 1, train.save_every)
        most = max(most, sum(kept.may_be_kept(step, curve[:seen]) for step in saved))
    # Those of the steps since that validation are not looked at yet.
    return most + QUARTERS
