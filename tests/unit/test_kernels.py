"""Kernels in use are named, and compared with PyTorch's own operations; those known to be wrong are refused."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3_5ForCausalLM, Qwen3_5TextConfig

from mergetime.core.errors import UserError
from mergetime.modalities import kernels
from mergetime.modalities.kernels import Heads, Operation

ROOT = Path(__file__).parents[2]
HEADS = Heads(key_heads=2, value_heads=4, key_width=16, value_width=8)
VERSIONS = {"fla-core": "0.6.0", "triton": "3.6.0", "torch": "2.11.0"}


def qwen() -> PreTrainedModel:
    """A tiny Qwen3.5 with both kinds of attention."""
    return Qwen3_5ForCausalLM(
        Qwen3_5TextConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            layer_types=["linear_attention", "full_attention"], num_attention_heads=2, num_key_value_heads=1,
            head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16,
            linear_value_head_dim=8,
        )
    )  # fmt: skip


def operation(name: str) -> Operation:
    return next(operation for operation in kernels.operations(qwen()) if operation.name == name)


def stepwise() -> Operation:
    """The chunked rule, computed by the one that takes a step at a time: other code for the same function."""
    return replace(operation("chunk_gated_delta_rule"), used=operation("fused_recurrent_gated_delta_rule").reference)


def changed(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Operation:
    """The chunked rule with other arguments than it is given."""
    right = operation("chunk_gated_delta_rule")

    def wrong(query: Any, key: Any, value: Any, **given: Any) -> Any:
        return right.reference(query, key, value, **change(given))

    return replace(right, used=wrong)


def test_the_operations_of_a_model_are_those_that_transformers_takes_from_elsewhere() -> None:
    found = kernels.operations(qwen())
    assert [(operation.name, operation.package, operation.fused) for operation in found] == [
        ("causal_conv1d_fn", "causal_conv1d", False),
        ("causal_conv1d_update", "causal_conv1d", False),
        ("chunk_gated_delta_rule", "fla", False),
        ("fused_recurrent_gated_delta_rule", "fla", False),
    ]
    llama = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    assert kernels.operations(LlamaForCausalLM(llama)) == []


def test_sizes_are_those_of_the_model() -> None:
    assert Heads.of(qwen().config) == HEADS
    assert Heads.of(LlamaConfig()) == Heads()


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-3)])
def test_other_code_for_the_same_function_agrees(dtype: torch.dtype, most: float) -> None:
    found = kernels.agreement(stepwise(), HEADS, device="cpu", dtype=dtype)
    assert found.ok, found.why
    assert found.output_error is not None
    assert found.gradient_error is not None
    assert 0 < found.output_error < most
    assert 0 < found.gradient_error < most
    forward = kernels.agreement(stepwise(), HEADS, device="cpu", dtype=dtype, backward=False)
    assert (forward.output_error, forward.gradient_error) == (found.output_error, None)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda given: given | {"g": 0.9 * given["g"]}, "the output"),
        (lambda given: given | {"use_qk_l2norm_in_kernel": False}, "the output"),
        # The output is right, as it was on Hopper with Triton 3.6.
        (lambda given: given | {"g": given["g"] + 0.1 * (given["g"] - given["g"].detach())}, "the gradient of g"),
        (lambda given: given | {"beta": given["beta"].detach()}, "the gradient of beta"),
        (lambda given: given | {"beta": given["beta"] * float("nan")}, "the output"),
    ],
)
def test_a_wrong_kernel_is_named_with_what_is_wrong(change: Callable[..., Any], named: str) -> None:
    found = kernels.agreement(changed(change), HEADS, device="cpu", dtype=torch.float32)
    assert not found.ok
    assert found.why.startswith(f"it differs from PyTorch's own operations, {named} by ")
    assert "make env-gpu" in found.why


def test_a_kernel_that_fails_is_no_traceback() -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    found = kernels.agreement(replace(stepwise(), used=failing), HEADS, device="cpu")
    assert found.why.startswith("it fails (Failed to find C compiler. Please specify via CC); ")
    assert (found.ok, found.output_error, found.gradient_error) == (False, None, None)


@pytest.mark.parametrize(
    ("versions", "major", "known"),
    [
        (VERSIONS, 9, True),
        (VERSIONS | {"triton": "3.4.0"}, 9, True),
        (VERSIONS | {"triton": "3.7.0"}, 9, True),
        (VERSIONS | {"triton": "3.3.1"}, 9, False),
        (VERSIONS | {"triton": "3.7.1"}, 9, False),
        (VERSIONS | {"triton": "3.10.0"}, 9, False),
        (VERSIONS | {"tilelang": "0.1.15"}, 9, False),
        (VERSIONS, 8, False),
        ({"torch": "2.13.0"}, 9, False),
    ],
)
def test_versions_that_are_known_to_be_wrong_on_a_chip_are_refused(
    versions: dict[str, str], major: int, known: bool
) -> None:
    fault = kernels.fault_of("chunk_gated_delta_rule", versions, major)
    assert (fault is not None) == known
    if fault:
        assert fault.startswith(
            "triton from 3.4.0 to below 3.7.1 computes it wrong on Hopper GPUs; install triton 3.7.1"
        )
    assert kernels.fault_of("causal_conv1d_fn", versions, major) is None


def test_a_kernel_that_is_wrong_is_refused_before_it_is_used() -> None:
    on_cpu = torch.device("cpu")
    kernels._check_on_gpu([stepwise()], HEADS, on_cpu, torch.float32, backward=True)
    wrong = changed(lambda given: given | {"g": 0.5 * given["g"]})
    with pytest.raises(
        UserError, match=r"^kernel chunk_gated_delta_rule \(.*torch 2\.\S+\): it differs from PyTorch's"
    ):
        kernels._check_on_gpu([wrong], HEADS, on_cpu, torch.float32, backward=True)


def test_a_cpu_is_told_what_computes_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    found = kernels.check(qwen(), dtype=torch.float32, backward=True)
    assert set(found.values()) == {f"torch {torch.__version__}"}
    assert "chunk_gated_delta_rule" in found
    assert capsys.readouterr().err == ""


def test_kernels_that_need_a_gpu_are_left_out_where_there_is_none(tmp_path: Path) -> None:
    """flash-linear-attention as transformers finds it: a package whose kernels fail without a GPU."""
    package = tmp_path / "fla/ops/gated_delta_rule"
    package.mkdir(parents=True)
    for folder in (package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    (package / "__init__.py").write_text("def chunk_gated_delta_rule(*_, **__):\n    raise RuntimeError('no driver')\n")
    qwen().save_pretrained(tmp_path / "model")

    def forward(load: str) -> "subprocess.CompletedProcess[str]":
        program = f"import torch; from pathlib import Path; {load}(input_ids=torch.arange(3)[None])"
        path = f"{ROOT / 'scripts'}:{tmp_path}"
        return subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )

    taken = forward("import transformers; transformers.AutoModelForCausalLM.from_pretrained('model')")
    assert "RuntimeError: no driver" in taken.stderr
    loaded = forward(
        "from mergetime.modalities.causal_lm.loading import load_base; "
        "load_base(Path('model'), dtype=torch.float32, four_bit=False)"
    )
    assert loaded.returncode == 0, loaded.stderr
