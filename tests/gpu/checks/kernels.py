"""Fused kernels of the gated delta rule against PyTorch's operations: outputs, gradients, and time."""

import importlib.util
import inspect
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tests.gpu.checking import Figure, Setting, device, finish

if TYPE_CHECKING:
    import torch

TOLERANCE = 0.02
"""Of a relative error in the Frobenius norm: bfloat16 has eight bits, and sums are taken in another order."""
NAMES = ("query", "key", "value", "g", "beta")


def check(setting: Setting) -> Iterator[Figure]:
    """The kernels in use, and where there are none PyTorch's step-by-step form, against its form in chunks."""
    import torch
    from transformers.models.qwen3_5 import modeling_qwen3_5 as modeling

    reference = inspect.unwrap(modeling.torch_chunk_gated_delta_rule)
    candidate, name = inspect.unwrap(modeling.torch_recurrent_gated_delta_rule), "PyTorch, step by step"
    if torch.cuda.is_available() and importlib.util.find_spec("fla"):
        candidate, name = modeling.torch_chunk_gated_delta_rule, "flash-linear-attention"
    batch, length, heads, width = (2, 70, 2, 16) if setting.tiny else (4, 1024, 16, 128)
    expected, expected_s = _measured(reference, batch, length, heads, width)
    yield Figure("PyTorch, in chunks", expected_s * 1e3, "ms", "forward and backward")
    given, given_s = _measured(candidate, batch, length, heads, width)
    yield Figure(name, given_s * 1e3, "ms", "forward and backward")
    for what, tensor in given.items():
        error = float((tensor - expected[what]).norm() / expected[what].norm())
        yield Figure(f"error of {what}", error, "", f"{name}; at most {TOLERANCE}", error <= TOLERANCE)


def _measured(
    rule: Callable[..., Any], batch: int, length: int, heads: int, width: int
) -> "tuple[dict[str, torch.Tensor], float]":
    """Output and gradients in float32, and seconds of the second of two runs: the first tunes and compiles."""
    import torch

    generator = torch.Generator(device()).manual_seed(0)

    def normal(*shape: int) -> "torch.Tensor":
        return torch.randn(shape, generator=generator, device=device())

    shape = (batch, length, heads)
    values = [normal(*shape, width) for _ in range(3)]
    # Decays below 1 and rates between 0 and 1, as the layers make them.
    values += [torch.nn.functional.logsigmoid(normal(*shape) + 2), torch.sigmoid(normal(*shape))]
    # The layers make decays in float32.
    dtypes = [torch.float32 if name == "g" else torch.bfloat16 for name in NAMES]
    inputs = [value.to(dtype).requires_grad_() for value, dtype in zip(values, dtypes, strict=True)]
    towards = normal(*shape, width).to(torch.bfloat16)
    seconds = 0.0
    for _ in range(2):
        for tensor in inputs:
            tensor.grad = None
        finish()
        started = time.monotonic()
        output, _ = rule(*inputs[:3], g=inputs[3], beta=inputs[4], use_qk_l2norm_in_kernel=True)
        output.backward(towards)
        finish()
        seconds = time.monotonic() - started
    gradients = {f"d {name}": tensor.grad for name, tensor in zip(NAMES, inputs, strict=True)}
    return {
        name: tensor.detach().float() for name, tensor in {"output": output, **gradients}.items() if tensor is not None
    }, seconds
