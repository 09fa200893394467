"""What computes the answers: transformers on a loaded model, or vLLM on a checkpoint."""

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergetime.core.errors import UserError
from mergetime.evaluation.benchmarks import LoadedBenchmark
from mergetime.evaluation.means import Row
from mergetime.modalities.causal_lm.harness import run
from mergetime.modalities.causal_lm.rendering import bounded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def evaluate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    benchmarks: Sequence[LoadedBenchmark],
    *,
    batch_size: int,
    seed: int,
    chat_template: bool = True,
) -> tuple[list[Row], list[Row]]:
    """Evaluate one model with transformers; the rows of its metrics and of its samples, as :func:`run` has them."""
    if not benchmarks:
        return [], []
    from lm_eval.models.huggingface import HFLM

    # A warning for every subject: a loaded model ignores the arguments of loading.
    logging.getLogger("lm_eval.models.huggingface").setLevel(logging.ERROR)
    # A softmax in the model's dtype would make bfloat16 likelihoods too coarse to compare choices.
    harness = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        softmax_dtype="float32",
        enable_thinking=False,
    )
    return run(harness, benchmarks, seed=seed, chat_template=chat_template)


def vllm_arguments(checkpoint: Path, *, dtype: str, batch_size: int, seed: int) -> dict[str, Any]:
    """What lm-eval's VLLM is made with: a whole checkpoint, since a LoRA beside it may silently do nothing.

    At most ``batch_size`` sequences run at a time. The base stays on the GPU, hence not all of its memory is taken.
    """
    return {
        "pretrained": str(checkpoint),
        "dtype": dtype,
        "batch_size": "auto",
        "max_batch_size": batch_size,
        "seed": seed,
        "enable_thinking": False,
        "gpu_memory_utilization": 0.7,
    }


def check_vllm() -> None:
    """Refuse the backend where it is not installed.

    Raises:
        UserError: saying what to do.
    """
    if find_spec("vllm") is None:
        raise UserError("evaluation.backend: vllm is not installed; say `pip install vllm`, or set backend: hf")


def evaluate_with_vllm(
    checkpoint: Path,
    benchmarks: Sequence[LoadedBenchmark],
    *,
    dtype: str,
    batch_size: int,
    seed: int,
    chat_template: bool = True,
) -> tuple[list[Row], list[Row]]:
    """The same with vLLM, for a checkpoint in a folder and benchmarks that generate; the GPU is free again afterwards.

    Raises:
        UserError: if vLLM is not installed.
    """
    check_vllm()
    import gc

    import torch
    from lm_eval.models.vllm_causallms import VLLM

    torch.cuda.empty_cache()
    harness = VLLM(**vllm_arguments(checkpoint, dtype=dtype, batch_size=batch_size, seed=seed))
    # vLLM loads a tokenizer of its own.
    bounded(harness.tokenizer, checkpoint)
    try:
        return run(harness, benchmarks, seed=seed, chat_template=chat_template)
    finally:
        del harness
        gc.collect()
        torch.cuda.empty_cache()
