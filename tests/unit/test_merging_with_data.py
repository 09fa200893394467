"""Merge methods that know the experts' data, against numpy."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mergetime.merging.methods.with_data import fisher, localize_and_stitch_trained, regmean

EXPERTS, OUTPUTS, INPUTS = 3, 5, 7


def context(statistics: torch.Tensor | None) -> Any:
    return SimpleNamespace(tensor="model.layers.0.mlp.up_proj.weight", statistics=statistics)


@pytest.fixture
def stack() -> torch.Tensor:
    return torch.randn(EXPERTS, OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def information() -> torch.Tensor:
    return torch.rand(EXPERTS, OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(2)) ** 4


@pytest.fixture
def grams() -> torch.Tensor:
    """Of inputs of very different size, as those of real layers."""
    inputs = torch.randn(EXPERTS, 40, INPUTS, generator=torch.Generator().manual_seed(3)) * torch.logspace(
        -3, 2, INPUTS
    )
    return inputs.transpose(1, 2) @ inputs / 40


def reduced(gram: np.ndarray, reduction: float) -> np.ndarray:
    return gram * np.where(np.eye(len(gram)) > 0, 1.0, reduction)


def test_fisher_is_the_mean_weighted_by_information(stack: torch.Tensor, information: torch.Tensor) -> None:
    floor = 1e-3
    assert bool((information < floor).any())
    weights = np.maximum(information.double().numpy(), floor)
    expected = (weights * stack.double().numpy()).sum(0) / weights.sum(0)
    given = stack.clone(), information.clone()
    np.testing.assert_allclose(fisher(stack, context(information), floor).numpy(), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(stack, given[0])
    assert torch.equal(information, given[1])


def test_fisher_averages_what_nobody_needs_and_follows_who_does(stack: torch.Tensor) -> None:
    none = torch.zeros_like(stack)
    torch.testing.assert_close(fisher(stack, context(none), 1e-6), stack.mean(dim=0))
    one = none.clone()
    one[1] = 1e6
    torch.testing.assert_close(fisher(stack, context(one), 1e-6), stack[1])
    assert torch.equal(fisher(stack[:1], context(none[:1]), 1e-6), stack[0])


def test_fisher_does_not_see_a_common_factor_or_the_order(stack: torch.Tensor, information: torch.Tensor) -> None:
    merged = fisher(stack, context(information), 1e-9)
    torch.testing.assert_close(fisher(stack, context(information * 1000), 1e-6), merged, rtol=1e-4, atol=1e-6)
    order = [2, 0, 1]
    torch.testing.assert_close(fisher(stack[order], context(information[order]), 1e-9), merged)


@pytest.mark.parametrize("reduction", [0.0, 0.1, 0.9, 1.0])
def test_regmean_is_the_paper_s_formula(stack: torch.Tensor, grams: torch.Tensor, reduction: float) -> None:
    shrunk = [reduced(gram.double().numpy(), reduction) for gram in grams]
    products = sum(update.double().numpy() @ gram for update, gram in zip(stack, shrunk, strict=True))
    expected = products @ np.linalg.inv(sum(shrunk))
    merged = regmean(stack, context(grams), reduction)
    assert merged.dtype == torch.float32
    np.testing.assert_allclose(merged.numpy(), expected, rtol=1e-3, atol=1e-4)


def test_regmean_of_task_vectors_is_that_of_weights(stack: torch.Tensor, grams: torch.Tensor) -> None:
    base = torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(4))
    of_weights = regmean(stack + base, context(grams), 0.9)
    torch.testing.assert_close(regmean(stack, context(grams), 0.9) + base, of_weights, rtol=1e-4, atol=1e-5)


def test_regmean_minimises_the_distance_to_the_experts_outputs(stack: torch.Tensor, grams: torch.Tensor) -> None:
    def distance(weight: torch.Tensor) -> float:
        differences = weight.double() - stack.double()
        return float((differences @ grams.double() * differences).sum())

    merged = regmean(stack, context(grams), 1.0)
    assert distance(merged) < distance(stack.mean(dim=0))
    generator = torch.Generator().manual_seed(5)
    for _ in range(20):
        moved = merged + 0.1 * torch.randn(merged.shape, generator=generator)
        assert distance(merged) < distance(moved)


def test_regmean_of_one_expert_or_of_equal_grams_is_the_mean(stack: torch.Tensor, grams: torch.Tensor) -> None:
    torch.testing.assert_close(regmean(stack[:1], context(grams[:1]), 0.9), stack[0], rtol=1e-5, atol=1e-6)
    equal = grams[:1].expand(EXPERTS, -1, -1)
    torch.testing.assert_close(regmean(stack, context(equal), 0.9), stack.mean(dim=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reduction", [0.9, 1.0])
def test_regmean_averages_what_no_inputs_reach(stack: torch.Tensor, grams: torch.Tensor, reduction: float) -> None:
    blind = grams.clone()
    blind[:, 2, :] = blind[:, :, 2] = 0.0
    merged = regmean(stack, context(blind), reduction)
    assert bool(merged.isfinite().all())
    torch.testing.assert_close(merged[:, 2], stack[:, :, 2].mean(dim=0))
    seen = [index for index in range(INPUTS) if index != 2]
    alone = regmean(stack[:, :, seen], context(blind[:, seen][:, :, seen]), reduction)
    torch.testing.assert_close(merged[:, seen], alone, rtol=1e-4, atol=1e-5)
    nothing = regmean(stack, context(torch.zeros_like(grams)), reduction)
    torch.testing.assert_close(nothing, stack.mean(dim=0))


def test_regmean_with_fewer_positions_than_inputs_stays_small(stack: torch.Tensor) -> None:
    inputs = torch.randn(EXPERTS, 1, INPUTS, generator=torch.Generator().manual_seed(6))
    grams = inputs.transpose(1, 2) @ inputs
    for reduction in (0.9, 1.0):
        merged = regmean(stack, context(grams), reduction)
        assert float(merged.abs().max()) < 10 * float(stack.abs().max())


def test_regmean_averages_tensors_without_gram(stack: torch.Tensor) -> None:
    assert torch.equal(regmean(stack[:, 0], context(None), 0.9), stack[:, 0].mean(dim=0))


def test_regmean_of_a_block_of_rows_is_the_block(stack: torch.Tensor, grams: torch.Tensor) -> None:
    whole = regmean(stack, context(grams), 0.9)
    torch.testing.assert_close(regmean(stack[:, 1:3], context(grams), 0.9), whole[1:3])


def test_stitching_averages_overlaps_by_count(stack: torch.Tensor) -> None:
    masks = torch.rand(stack.shape, generator=torch.Generator().manual_seed(7)) < 0.4
    kept = masks.numpy().astype(np.float64)
    expected = (kept * stack.double().numpy()).sum(0) / np.maximum(1, kept.sum(0))
    assert {0, 1, 2, 3} == {int(count) for count in np.unique(kept.sum(0))}
    for given in (masks, masks.to(torch.uint8), masks.float()):
        merged = localize_and_stitch_trained(stack, context(given))
        assert merged.dtype == torch.float32
        np.testing.assert_allclose(merged.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", [lambda s, c: fisher(s, c, 1e-6), localize_and_stitch_trained])
def test_what_was_not_measured_is_refused_unless_nobody_changed_it(method: Any, stack: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"up_proj\.weight: nothing was measured of it; measure .* measure_expert\.py"):
        method(stack, context(None))
    assert torch.equal(method(torch.zeros(3, 2, 2), context(None)), torch.zeros(2, 2))
