"""Fused kernels against PyTorch's operations, by the pipeline's own comparison, and the time that both take."""

import inspect
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tests.gpu.checking import Figure, Setting, device, finish
from tests.gpu.inputs import DEMO_BASE

if TYPE_CHECKING:
    import torch

    from mergetime.modalities.kernels import Operation

RULE = "chunk_gated_delta_rule"


def check(setting: Setting) -> Iterator[Figure]:
    """The kernels in use; where there are none, PyTorch's step-by-step form of the gated delta rule in their place."""
    from mergetime.modalities import kernels

    heads = kernels.Heads(2, 2, 16, 16) if setting.tiny else kernels.Heads()
    for operation in _operations():
        said = kernels.agreement(operation, heads, device=device())
        note = said.why or f"at most {kernels.TOLERANCE}; {said.versions}"
        yield Figure(f"error of {operation.name}", said.output_error, "", note, said.ok)
        if said.gradient_error is not None:
            yield Figure(f"error of its gradients ({operation.name})", said.gradient_error, "", "the largest", said.ok)
        if operation.name == RULE:
            batch, length = (2, 70) if setting.tiny else (4, 1024)
            for name, rule in (("PyTorch, in chunks", operation.reference), ("what is used", operation.used)):
                yield Figure(name, 1e3 * _seconds(rule, batch, length, heads), "ms", "forward and backward")


def _operations() -> "list[Operation]":
    """What transformers takes from other packages for a model with linear attention."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.qwen3_5 import modeling_qwen3_5 as modeling

    from mergetime.modalities import kernels

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(DEMO_BASE))
    if fused := [operation for operation in kernels.operations(model) if operation.fused]:
        return fused
    in_chunks = inspect.unwrap(modeling.torch_chunk_gated_delta_rule)
    return [kernels.Operation(RULE, "torch", inspect.unwrap(modeling.torch_recurrent_gated_delta_rule), in_chunks)]


def _seconds(rule: Callable[..., Any], batch: int, length: int, heads: Any) -> float:
    """Seconds of the second of two runs, forward and backward: the first tunes and compiles."""
    import torch

    generator = torch.Generator(device()).manual_seed(0)

    def normal(*shape: int) -> "torch.Tensor":
        return torch.randn(batch, length, *shape, generator=generator, device=device())

    query, key = (normal(heads.key_heads, heads.key_width) for _ in range(2))
    value, beta = normal(heads.value_heads, heads.value_width), torch.sigmoid(normal(heads.value_heads))
    # The layers make decays in float32.
    decay = torch.nn.functional.logsigmoid(normal(heads.value_heads) + 2).requires_grad_()
    inputs = [tensor.to(torch.bfloat16).requires_grad_() for tensor in (query, key, value, beta)]
    seconds = 0.0
    for _ in range(2):
        finish()
        started = time.monotonic()
        output, _ = rule(*inputs[:3], g=decay, beta=inputs[3], use_qk_l2norm_in_kernel=True)
        output.sum().backward()
        finish()
        seconds = time.monotonic() - started
    return seconds
