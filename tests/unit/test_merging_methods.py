"""Merge methods against brute force, entry by entry, and the laws that they obey."""

import math

import numpy as np
import pytest
import torch

from mergetime.merging import registry, trimming
from mergetime.merging.engine import merge_stack
from mergetime.merging.method import TensorContext, Trim
from mergetime.merging.methods.dare import attainable, drop_and_rescale
from mergetime.merging.trimming import trim_stack

EXPERTS = ("code", "math", "safety")
CONTEXT = TensorContext("layers.0.weight", EXPERTS, seed=1)


def run(name: str, stack: torch.Tensor, context: TensorContext = CONTEXT, **params: object) -> torch.Tensor:
    method = registry.get(name)
    return merge_stack(
        method, stack, context, method.validate({key.rstrip("_"): value for key, value in params.items()})
    )


@pytest.fixture
def stack() -> torch.Tensor:
    return torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0))


def brute_trim(values: np.ndarray, density: float) -> np.ndarray:
    flat = values.ravel()
    count = max(1, int(density * flat.size))
    kept = sorted(range(flat.size), key=lambda place: (-abs(flat[place]), place))[:count]
    return np.array([flat[place] if place in kept else 0.0 for place in range(flat.size)]).reshape(values.shape)


def brute_elect(tensors: list[np.ndarray]) -> np.ndarray:
    merged = np.zeros(tensors[0].shape)
    for place in np.ndindex(merged.shape):
        values = [float(tensor[place]) for tensor in tensors]
        sign = 1 if sum(values) >= 0 else -1
        agreeing = [value for value in values if value * sign > 0]
        merged[place] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    return merged


def assert_close(found: torch.Tensor, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6, atol=1e-7)


def test_simple_average_and_soup(stack: torch.Tensor) -> None:
    wanted = sum(tensor.numpy().astype(float) for tensor in stack) / 3
    assert_close(run("simple_average", stack), wanted)
    assert_close(run("greedy_soup", stack), wanted)


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 1.5, -1.0])
def test_task_arithmetic(stack: torch.Tensor, lambda_: float) -> None:
    total = sum(tensor.numpy().astype(float) for tensor in stack)
    assert_close(run("task_arithmetic", stack, lambda_=lambda_), lambda_ * total)
    assert_close(run("task_arithmetic", stack, lambda_=lambda_, over="mean"), lambda_ * total / 3)


@pytest.mark.parametrize(("density", "lambda_"), [(0.2, 1.0), (0.5, 1.0), (0.5, 0.3), (1.0, 1.0), (0.01, 1.0)])
def test_ties(stack: torch.Tensor, density: float, lambda_: float) -> None:
    wanted = lambda_ * brute_elect([brute_trim(tensor.numpy(), density) for tensor in stack])
    assert_close(run("ties", stack, density=density, lambda_=lambda_), wanted)


def test_dare_ties(stack: torch.Tensor) -> None:
    dropped = drop_and_rescale(stack, CONTEXT, 0.5)
    assert_close(run("dare_ties", stack, density=0.5, lambda_=0.7), 0.7 * brute_elect(list(dropped.numpy())))


def test_zero_sum_elects_plus() -> None:
    opposite = torch.tensor([[-2.0, 2.0], [2.0, -2.0]])
    context = TensorContext("w", ("a", "b"), 1)
    assert run("ties", opposite, context, density=1.0).tolist() == [2.0, 2.0]


def test_entries_where_nobody_agrees_are_zero_and_not_nan() -> None:
    assert run("ties", torch.zeros(3, 4), density=1.0).tolist() == [0.0] * 4


@pytest.mark.parametrize("density", [0.1, 0.29, 0.5, 0.99, 1.0])
def test_trim_keeps_exactly_k_of_tied_values_the_first_ones(density: float) -> None:
    count = max(1, int(density * 100))
    tied = torch.ones(2, 10, 10)
    tied[1] *= -1
    trimmed = trim_stack(tied, Trim(density), CONTEXT.experts[:2]).flatten(1)
    assert (trimmed != 0).sum(dim=1).tolist() == [count, count]
    assert (trimmed[:, :count] != 0).all()
    bf16 = torch.randn(1, 40, 40, generator=torch.Generator().manual_seed(3)).bfloat16().float()
    assert int((trim_stack(bf16, Trim(density), CONTEXT.experts[:1]) != 0).sum()) == int(density * 1600)


@pytest.mark.parametrize("values", ["normal", "tied"])
def test_trimming_off_the_cpu_counts_with_torch_to_the_same_end(monkeypatch: pytest.MonkeyPatch, values: str) -> None:
    many = torch.randn(3, 60, 50, generator=torch.Generator().manual_seed(5))
    many = many if values == "normal" else many.round()
    trim = Trim({"code": 0.3, "math": 0.3, "safety": 0.9}, skip={"code": 0.1, "math": 0.0, "safety": 0.05})
    wanted = trim_stack(many, trim, EXPERTS)
    monkeypatch.setattr(trimming, "_magnitudes", lambda row: row.abs().flatten())
    assert torch.equal(trim_stack(many, trim, EXPERTS), wanted)


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "dare_ties"])
def test_lambda_zero_is_the_base(name: str, stack: torch.Tensor) -> None:
    assert not run(name, stack, lambda_=0.0).any()


@pytest.mark.parametrize("name", [name for name in registry.names() if not registry.get(name).statistics])
def test_methods_leave_their_input_alone(name: str, stack: torch.Tensor) -> None:
    stack = stack[: int(min(3, registry.get(name).count[1]))]
    before = stack.clone()
    run(name, stack, TensorContext(CONTEXT.tensor, EXPERTS[: len(stack)], seed=1))
    assert torch.equal(stack, before)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dare_keeps_the_rate_the_scale_and_the_expectation(density: float) -> None:
    ones = torch.ones(3, 300, 400)
    dropped = drop_and_rescale(ones, CONTEXT, density)
    for expert in dropped:
        kept = expert[expert != 0]
        deviation = math.sqrt(density * (1 - density) / expert.numel())
        assert abs(kept.numel() / expert.numel() - density) < 4 * deviation
        torch.testing.assert_close(kept, torch.full_like(kept, 1 / attainable(density)))
        assert abs(float(expert.mean()) - 1) < 4 * deviation / density


def test_dare_masks_depend_on_seed_expert_and_tensor_and_on_nothing_else() -> None:
    ones = torch.ones(2, 40, 40)
    first = drop_and_rescale(ones, TensorContext("w", ("math", "code"), 1), 0.5)
    assert not torch.equal(first[0], first[1])
    for context in (TensorContext("w", ("math", "code"), 2), TensorContext("v", ("math", "code"), 1)):
        assert not torch.equal(drop_and_rescale(ones, context, 0.5)[0], first[0])
    alone = drop_and_rescale(ones[:1], TensorContext("w", ("code",), 1), 0.5)
    assert torch.equal(alone[0], first[1])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(drop_and_rescale(ones, TensorContext("w", ("math", "code"), 1), 0.5), first)
    finally:
        torch.set_num_threads(threads)


def test_adapter_space_shares_a_weight_between_the_factors() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(1, 2, 5, generator=generator), torch.randn(1, 4, 2, generator=generator)
    for weight in (0.5, -2.0):
        weighted_a = TensorContext("w", ("math",), 1, scalings=(3.0,), factor="A").weigh(a, [weight])
        weighted_b = TensorContext("w", ("math",), 1, scalings=(3.0,), factor="B").weigh(b, [weight])
        torch.testing.assert_close(weighted_b[0] @ weighted_a[0], weight * 3.0 * b[0] @ a[0])
