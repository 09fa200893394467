"""Full checkpoints into which adapters were merged: methods on them give what they give on the adapters."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergetime.merging import rounding
from mergetime.merging.engine import merge

Experts = list[tuple[str, Path]]
NAMES = ("code", "math", "safety")
WEIGHT = "model.layers.0.mlp.up_proj.weight"
EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"
OUTPUTS, INPUTS, RANK = 96, 72, 4
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def write(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": True}))
    save_file(state, folder / "model.safetensors")
    return folder


def write_adapter(folder: Path, left: torch.Tensor, right: torch.Tensor) -> Path:
    folder.mkdir(parents=True)
    prefix = f"base_model.model.{WEIGHT.removesuffix('.weight')}"
    save_file({f"{prefix}.lora_A.weight": right, f"{prefix}.lora_B.weight": left}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["up_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def pools(folder: Path, dtype: torch.dtype, size: float = 0.02, outlier: float = 1.0) -> tuple[Path, Experts, Experts]:
    """A base, adapters of ``size`` times its norm, and these merged into it; one column is ``outlier`` times larger."""
    weights = numbers(0, OUTPUTS, INPUTS)
    weights[:, 0] *= outlier
    weights = weights.to(dtype)
    others = {EMBEDDING: numbers(1, 200, INPUTS).to(dtype), NORM: torch.ones(INPUTS, dtype=dtype)}
    base = write(folder / "base", {WEIGHT: weights, **others})
    adapters, checkpoints = [], []
    for place, name in enumerate(NAMES):
        left, right = numbers(10 + place, OUTPUTS, RANK), numbers(20 + place, RANK, INPUTS)
        left *= size * weights.float().norm() / (left @ right).norm()
        adapters.append((name, write_adapter(folder / f"{name}-adapter", left, right)))
        merged = (weights.float() + left @ right).to(dtype)
        checkpoints.append((name, write(folder / name, {WEIGHT: merged, **others})))
    return base, adapters, checkpoints


def run(experts: Experts, base: Path, out: Path, method: str, **params: Any) -> torch.Tensor:
    merge(experts, method=method, params=params, space="delta", seed=0, out=out, base=base, output="delta")
    return load_file(out / "task_vector.safetensors")[WEIGHT].double()


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("method", ["tsv_merge", "iso_c", "subspace_boosting"])
@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-5), ("float16", 0.01), ("bfloat16", 0.07)])
@pytest.mark.parametrize("outlier", [1.0, 30.0])
def test_singular_values_that_rounding_made_are_none(
    tmp_path: Path, method: str, dtype: str, near: float, outlier: float
) -> None:
    base, adapters, checkpoints = pools(tmp_path, DTYPES[dtype], outlier=outlier)
    wanted = run(adapters, base, tmp_path / "wanted", method)
    # What the rounding of large weights has lost is lost.
    near *= 4 if outlier > 1 else 1
    assert distance(run(checkpoints, base, tmp_path / "found", method), wanted) < near
    assert distance(run(checkpoints, base, tmp_path / "kept", method, rounding="kept"), wanted) > 0.4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_what_was_trained_in_all_directions_keeps_them(tmp_path: Path, dtype: str, decay: float) -> None:
    """Weak directions, too, which are no larger than what rounding has put there."""
    base, _, _ = pools(tmp_path, DTYPES[dtype])
    weights = load_file(base / "model.safetensors")
    experts = []
    for place, name in enumerate(NAMES):
        u, s, vh = torch.linalg.svd(numbers(30 + place, OUTPUTS, INPUTS), full_matrices=False)
        update = u * (s * torch.arange(1, len(s) + 1) ** -decay) @ vh
        update *= 0.02 * weights[WEIGHT].float().norm() / update.norm()
        trained = (weights[WEIGHT].float() + update).to(DTYPES[dtype])
        experts.append((name, write(tmp_path / "full" / name, {**weights, WEIGHT: trained})))
    for method in ("tsv_merge", "iso_c"):
        found = run(experts, base, tmp_path / f"{method}found", method)
        assert torch.equal(found, run(experts, base, tmp_path / f"{method}kept", method, rounding="kept"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_is_as_large_as_expected(dtype: torch.dtype) -> None:
    exact = numbers(3, 200, 150) * torch.linspace(0.01, 3, 150)
    weights = exact.to(dtype)
    noise, expected = (weights.float() - exact).double(), rounding.of(weights)
    squared, largest = float(noise.square().sum()), float(torch.linalg.svdvals(noise)[0])
    assert abs(squared - expected.energy) < 4 * expected.variance**0.5 < 0.1 * expected.energy
    assert largest < expected.largest < 1.5 * largest
    three = rounding.total([expected] * 3)
    assert three is not None
    assert three.largest == pytest.approx(3**0.5 * expected.largest)
    assert rounding.of(torch.zeros(3, 2)).energy == 0.0


@pytest.mark.parametrize("params", [{}, {"density": 0.5}, {"density": 0.3, "overlap": "last"}])
def test_localize_and_stitch_counts_what_an_expert_changes(tmp_path: Path, params: dict[str, Any]) -> None:
    base, adapters, checkpoints = pools(tmp_path, torch.float32)
    wanted = run(adapters, base, tmp_path / "wanted", "localize_and_stitch", **params)
    assert distance(run(checkpoints, base, tmp_path / "found", "localize_and_stitch", **params), wanted) < 1e-4
    counted = {**params, "counted": "all"}
    assert distance(run(checkpoints, base, tmp_path / "all", "localize_and_stitch", **counted), wanted) > 0.3


def test_experts_that_change_nothing_are_stitched_to_nothing(tmp_path: Path) -> None:
    base, _, _ = pools(tmp_path, torch.float32)
    state = load_file(base / "model.safetensors")
    same = [(name, write(tmp_path / "same" / name, state)) for name in NAMES[:2]]
    assert not run(same, base, tmp_path / "out", "localize_and_stitch").any()
