"""Which code computes the operations that transformers takes from other packages where these are installed.

Linear attention is the one that counts: with flash-linear-attention it runs as fused kernels in Triton, without it in
PyTorch's own operations, correct and slow. Which of the two runs is decided when transformers imports a model's module.
Kernels have been wrong on some chips, so those in use are compared with PyTorch's operations before anything is trained
or evaluated with them.
"""

import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from packaging.version import Version
from torch import nn

from mergetime.core.errors import UserError, one_line

TOLERANCE = 0.02
"""Norm of the difference over the norm of what PyTorch computes, for an output or a gradient in bfloat16.

A number in bfloat16 is off by up to 0.004, and kernels keep in it what lies between. In float32 the kernels of fla-core
0.6.0, in Triton's interpreter, are 1e-6 from PyTorch's operations for the output and 2e-6 for gradients.
"""

_DISTRIBUTIONS = {"fla": "fla-core", "causal_conv1d": "causal-conv1d"}
"""Packages by the name under which they are imported; their kernels are in the distribution of this name."""
_ON_A_GPU_ALONE = tuple(_DISTRIBUTIONS)
_LINEAR_ATTENTION = "chunk_gated_delta_rule"
_MEND = "say `make env-gpu`, or build the image again (docs/gpu.md)"


@dataclass(frozen=True)
class Operation:
    """An operation of a model as transformers calls it: ``used`` is what runs, ``reference`` PyTorch's own.

    ``name`` is that of the function in ``package``, from which ``used`` comes where that is installed.
    """

    name: str
    package: str
    used: Callable[..., Any]
    reference: Callable[..., Any]

    @property
    def fused(self) -> bool:
        """Whether another package than PyTorch computes it."""
        return self.used is not self.reference

    @property
    def versions(self) -> dict[str, str]:
        """The packages that compute it."""
        versions = {"torch": str(torch.__version__)}
        if not self.fused:
            return versions
        names = (_DISTRIBUTIONS.get(self.package, self.package), "triton", "tilelang")
        return {name: version for name in names if (version := _version(name))} | versions


@dataclass(frozen=True)
class Fault:
    """Versions of a package with which an operation is known to be wrong: at least ``since``, and below ``until``.

    On GPUs of a compute capability with the major number ``major``, called ``chips``, unless the package ``unless`` is
    installed, which then takes its place.
    """

    operation: str
    package: str
    since: str
    until: str
    major: int
    chips: str
    unless: str


FAULTS = (Fault("chunk_gated_delta_rule", "triton", "3.4.0", "3.7.1", 9, "Hopper GPUs", "tilelang"),)
"""The first: wrong gradients in ``chunk_bwd_dqkwg``, which ``ops/common/chunk_o.py`` of fla-core 0.6.0 refuses, too."""


@dataclass(frozen=True)
class Heads:
    """The heads of linear attention, and their widths."""

    key_heads: int = 16
    value_heads: int = 32
    key_width: int = 128
    value_width: int = 128

    @classmethod
    def of(cls, config: Any) -> "Heads":
        """Those that a model's config names; Qwen3.5's at 4B where it names none."""
        text = config.get_text_config()
        given = {name: getattr(text, f"linear_{kind}", None) for name, kind in _NAMES_OF_HEADS.items()}
        return cls(**{name: value for name, value in given.items() if value})


_NAMES_OF_HEADS = {
    "key_heads": "num_key_heads", "value_heads": "num_value_heads",
    "key_width": "key_head_dim", "value_width": "value_head_dim",
}  # fmt: skip


@dataclass(frozen=True)
class Agreement:
    """How far a kernel is from PyTorch's own operations on a small input; ``why`` says what is wrong with it, if any.

    Errors are relative norms, as in :data:`TOLERANCE`; that of gradients is the largest over all inputs, and None where
    none was asked for or the kernel has no backward pass. Both are None where the kernel failed.
    """

    operation: str
    versions: dict[str, str]
    output_error: float | None
    gradient_error: float | None
    why: str

    @property
    def ok(self) -> bool:
        """Whether the kernel may be used."""
        return not self.why


def leave_out_without_gpu() -> None:
    """Keep transformers from packages whose kernels run on a GPU alone, where there is none.

    It takes them wherever they are installed, on a node without a GPU, too, and fails there at the first forward pass.
    To be called before it imports a model's module.
    """
    if not torch.cuda.is_available():
        for package in _ON_A_GPU_ALONE:
            # Python's own sign of a module that is not to be found.
            sys.modules.setdefault(package, None)  # type: ignore[arg-type]


def operations(model: nn.Module) -> list[Operation]:
    """The operations of ``model`` that transformers takes from other packages where these are installed, by name."""
    found = {}
    for kind in {type(module) for module in model.modules()}:
        forward = inspect.unwrap(kind.forward)
        if not inspect.isfunction(forward):
            continue
        for function in (forward.__globals__.get(name) for name in forward.__code__.co_names):
            # What transformers' decorator chose is known to the function alone.
            chosen = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
            if {"func_name", "package", "implementation", "torch_function"} <= set(chosen):
                name = chosen["func_name"]
                found[name] = Operation(name, chosen["package"], chosen["implementation"], chosen["torch_function"])
    return [found[name] for name in sorted(found)]


def fuses_linear_attention(model: nn.Module) -> bool:
    """Whether fused kernels compute the model's linear attention, of whole sequences."""
    return any(operation.name == _LINEAR_ATTENTION and operation.fused for operation in operations(model))


def fault_of(operation: str, versions: Mapping[str, str], major: int) -> str | None:
    """What is known to be wrong with an operation; None where nothing is.

    Args:
        operation: its name.
        versions: of the packages that compute it.
        major: the first number of the GPU's compute capability.
    """
    for fault in FAULTS:
        version = versions.get(fault.package)
        if (
            (operation, major) == (fault.operation, fault.major)
            and version is not None
            and fault.unless not in versions
            and Version(fault.since) <= Version(version) < Version(fault.until)
        ):
            return (
                f"{fault.package} from {fault.since} to below {fault.until} computes it wrong on {fault.chips}; "
                f"install {fault.package} {fault.until} or newer, or {fault.unless} and nvcc"
            )
    return None


def agreement(
    operation: Operation,
    heads: Heads = Heads(),
    *,
    device: torch.device | str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
    backward: bool = True,
) -> Agreement:
    """Compare what runs with PyTorch's own operations, as transformers calls both, on a small input.

    Args:
        operation: one of :func:`operations`.
        heads: of the model's heads.
        device: where it runs.
        dtype: of what the model computes in.
        backward: whether gradients are compared, too.

    Raises:
        torch.cuda.OutOfMemoryError: where the GPU's memory is full.
    """
    arguments = _ARGUMENTS[operation.name](heads, device, dtype)
    versions = operation.versions
    if torch.device(device).type == "cuda":
        fault = fault_of(operation.name, versions, torch.cuda.get_device_capability(device)[0])
        if fault:
            return Agreement(operation.name, versions, None, None, fault)
    try:
        error, gradients = compare(
            operation.used, operation.reference, arguments, backward=backward and operation.name not in _NO_BACKWARD
        )
    except torch.cuda.OutOfMemoryError:
        raise
    # Compilers, drivers and kernels have no kind of error in common.
    except Exception as failure:
        return Agreement(operation.name, versions, None, None, f"it fails ({one_line(failure)[:300]}); {_MEND}")
    off = {"the output": error} | {f"the gradient of {name}": value for name, value in gradients.items()}
    # NaN is no agreement.
    wrong = [f"{name} by {value:.1g}" for name, value in off.items() if not value <= TOLERANCE]
    why = (
        f"it differs from PyTorch's own operations, {', '.join(wrong)} (at most {TOLERANCE}); {_MEND}" if wrong else ""
    )
    return Agreement(operation.name, versions, error, max(gradients.values(), default=None), why)


def compare(
    used: Callable[..., Any], reference: Callable[..., Any], arguments: "Arguments", *, backward: bool
) -> tuple[float, dict[str, float]]:
    """The relative errors of the output, and of the gradient of each tensor among the arguments."""
    results = []
    for function in (used, reference):
        tensors = {name: tensor.clone().requires_grad_(backward) for name, tensor in arguments.tensors.items()}
        output = function(*(tensors[name] for name in arguments.positional), **_named(arguments, tensors))
        output = output[0] if isinstance(output, tuple) else output
        if backward:
            (output.float() * _weights(output)).sum().backward()
        results.append((output.detach(), {name: tensor.grad for name, tensor in tensors.items()}))
    (output, gradients), (right, right_gradients) = results
    if not backward:
        return relative_error(output, right), {}
    return relative_error(output, right), {
        name: relative_error(gradient, right_gradients[name]) for name, gradient in gradients.items()
    }


def relative_error(tensor: torch.Tensor | None, right: torch.Tensor | None) -> float:
    """The norm of the difference over the norm of ``right``; NaN where one of the two is not there."""
    if tensor is None or right is None:
        return float("nan")
    return float((tensor.double() - right.double()).norm() / right.double().norm())


def check(model: nn.Module, *, dtype: torch.dtype, backward: bool) -> dict[str, str]:
    """What computes each of the model's :func:`operations`, as ``fla-core 0.6.0, triton 3.7.1, torch 2.13.0``.

    On a GPU, kernels are compared with PyTorch's own operations first; and a line on stderr says so where linear
    attention, which is to be trained, runs without them.

    Args:
        model: as it will run.
        dtype: of what it computes in.
        backward: whether it is to be trained.

    Raises:
        UserError: where a kernel is wrong or fails, with what to do.
    """
    device = next(model.parameters()).device
    taken = operations(model)
    if device.type == "cuda":
        if backward and any(operation.name == _LINEAR_ATTENTION and not operation.fused for operation in taken):
            print(_slow_line(), file=sys.stderr, flush=True)
        _check_on_gpu(taken, Heads.of(model.config), device, dtype, backward=backward)
    return {operation.name: _listed(operation.versions) for operation in taken}


def _slow_line() -> str:
    return (
        "linear attention runs in PyTorch's own operations, at about a hundredth of the GPU's rate (on an H200, 2,015 "
        f"tokens/s at 0.8B); for fused kernels {_MEND}"
    )


def _check_on_gpu(
    taken: Sequence[Operation], heads: Heads, device: torch.device, dtype: torch.dtype, *, backward: bool
) -> None:
    for operation in taken:
        if operation.fused and operation.name in _ARGUMENTS:
            found = agreement(operation, heads, device=device, dtype=dtype, backward=backward)
            if not found.ok:
                raise UserError(f"kernel {found.operation} ({_listed(found.versions)}): {found.why}")


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Arguments:
    """Of an operation: its tensors, which of them are given by position, and what else it is given by name."""

    tensors: dict[str, torch.Tensor]
    positional: tuple[str, ...]
    others: dict[str, Any]


def _named(arguments: Arguments, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    by_name = {name: tensor for name, tensor in tensors.items() if name not in arguments.positional}
    return by_name | arguments.others


def _weights(output: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(output.shape, generator=generator).to(output.device)


_EXAMPLES = 2
_POSITIONS = 200
"""Three chunks of 64 and a part of one."""


def _delta_rule(heads: Heads, device: torch.device | str, dtype: torch.dtype) -> Arguments:
    """As Qwen3.5 calls the gated delta rule: gates are float32 and negative, beta lies between 0 and 1."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(_EXAMPLES, _POSITIONS, *shape, generator=generator)

    tensors = {
        "query": drawn(heads.key_heads, heads.key_width).to(dtype),
        "key": drawn(heads.key_heads, heads.key_width).to(dtype),
        "value": drawn(heads.value_heads, heads.value_width).to(dtype),
        "g": -nn.functional.softplus(drawn(heads.value_heads)),
        "beta": drawn(heads.value_heads).sigmoid().to(dtype),
    }
    others = {"initial_state": None, "output_final_state": False, "use_qk_l2norm_in_kernel": True}
    return Arguments({name: tensor.to(device) for name, tensor in tensors.items()}, ("query", "key", "value"), others)


def _convolution(heads: Heads, device: torch.device | str, dtype: torch.dtype) -> Arguments:
    """As Qwen3.5 calls the causal convolution: a channel for each number of query, key and value; four taps."""
    generator = torch.Generator().manual_seed(0)
    channels = 2 * heads.key_heads * heads.key_width + heads.value_heads * heads.value_width
    states = torch.randn(_EXAMPLES, _POSITIONS, channels, generator=generator).transpose(1, 2)
    weight = torch.randn(channels, 4, generator=generator)
    tensors = {"hidden_states": states.to(device, dtype), "weight": weight.to(device, dtype)}
    return Arguments(tensors, ("hidden_states", "weight"), {"bias": None, "activation": "silu"})


_ARGUMENTS: dict[str, Callable[[Heads, torch.device | str, torch.dtype], Arguments]] = {
    "chunk_gated_delta_rule": _delta_rule,
    "fused_recurrent_gated_delta_rule": _delta_rule,
    "causal_conv1d_fn": _convolution,
}
_NO_BACKWARD = {"fused_recurrent_gated_delta_rule"}
"""What generates a token at a time, and is never trained."""
