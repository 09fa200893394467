"""Matrices of a model's experts, apart in files and stacked in loaded models: neither is overlooked."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergetime.artifacts.apply import applied
from mergetime.artifacts.materialise import materialised
from mergetime.core.errors import UserError
from mergetime.measuring.connectivity import interpolated
from mergetime.merging.engine import merge
from mergetime.merging.opening import open_pool
from tests.unit.gaps import FUSED, Kind, base_of, expert_of, load, logits

KINDS = {
    "apart": Kind("qwen3_moe"),
    "stacked": Kind("qwen3_moe", saved=FUSED),
    "stacked_on_apart": Kind("qwen3_moe", experts=(FUSED, FUSED)),
}
UP = "model.layers.1.mlp.experts.2.up_proj.weight"
BANK = "model.layers.1.mlp.experts.gate_up_proj"


@pytest.fixture(params=KINDS)
def experts(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Kind, Path, list[Path]]:
    kind = KINDS[request.param]
    base = base_of(kind, tmp_path / "base")
    return kind, base, [expert_of(kind, base, tmp_path / name, place) for place, name in enumerate("ab")]


def loaded(kind: Kind, folder: Path) -> Any:
    return load(kind, folder, torch.float32)


def test_an_expert_is_applied_and_materialised(experts: tuple[Kind, Path, list[Path]]) -> None:
    kind, base, (expert, _) = experts
    model, wanted = loaded(kind, base), logits(loaded(kind, expert))
    before = logits(model)
    with applied(model, expert), materialised(model, base) as folder:
        torch.testing.assert_close(logits(model), wanted, rtol=0, atol=0)
        torch.testing.assert_close(logits(loaded(kind, folder)), wanted, rtol=0, atol=0)
    assert logits(model).equal(before)
    assert float((before - wanted).abs().max()) > 0.1


def test_between_two_experts_is_either_at_the_ends(experts: tuple[Kind, Path, list[Path]]) -> None:
    kind, base, folders = experts
    model = loaded(kind, base)
    with open_pool([(folder.name, folder) for folder in folders], base=base) as pool:
        for alpha, folder in ((1.0, folders[0]), (0.0, folders[1])):
            with interpolated(model, pool, 0, 1, alpha, "delta"):
                assert logits(model).equal(logits(loaded(kind, folder)))


def test_importance_that_was_measured_on_a_bank_weighs_its_matrices(
    experts: tuple[Kind, Path, list[Path]], tmp_path: Path
) -> None:
    kind, base, folders = experts
    model = loaded(kind, base)
    statistics = {}
    for seed, folder in enumerate(folders):
        generator = torch.Generator().manual_seed(seed)
        measured = {name: torch.rand(tensor.shape, generator=generator) for name, tensor in model.named_parameters()}
        statistics[folder.name] = tmp_path / f"{folder.name}.safetensors"
        save_file(measured, statistics[folder.name])
    merge(
        [(folder.name, folder) for folder in folders], method="fisher", params={}, space="delta", seed=None, base=base,
        output="checkpoint", statistics=statistics, out=tmp_path / "out",
    )  # fmt: skip
    a, b = (load_file(statistics[folder.name])[BANK] + 1e-6 for folder in folders)
    first, second = (loaded(kind, folder).state_dict()[BANK] for folder in folders)
    merged = loaded(kind, tmp_path / "out").state_dict()[BANK]
    torch.testing.assert_close(merged, (a * first + b * second) / (a + b), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, f"lacks {UP}, which the base has; it is incomplete, or of another base"),
        ((15, 16), f"{UP} has shape (15, 16), the base's {BANK} is 4 experts of 32x16; it belongs to another base"),
    ],
)
def test_a_bank_that_is_incomplete_is_refused(change: tuple[int, int] | None, message: str, tmp_path: Path) -> None:
    kind = KINDS["apart"]
    base = base_of(kind, tmp_path / "base")
    file = expert_of(kind, base, tmp_path / "a", 0) / "model.safetensors"
    weights = load_file(file)
    removed = weights.pop(UP)
    assert removed.shape == (16, 16)
    save_file(weights | ({UP: torch.zeros(change)} if change else {}), file, metadata={"format": "pt"})
    model = loaded(kind, base)
    before = logits(model)
    with pytest.raises(UserError) as refused, applied(model, file.parent):
        pass
    assert str(refused.value) == f"{file.parent}: {message}"
    assert logits(model).equal(before)


@pytest.mark.parametrize("kind", ["apart", "stacked"])
def test_factors_of_single_matrices_fit_a_base_of_either_kind(kind: str, tmp_path: Path) -> None:
    base = base_of(KINDS[kind], tmp_path / "base")
    folder = tmp_path / "a"
    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 16, generator=generator), torch.randn(16, 2, generator=generator)
    module = f"base_model.model.{UP.removesuffix('.weight')}"
    save_file({f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    model = loaded(KINDS[kind], base)
    wanted = model.state_dict()[BANK].clone()
    wanted[2, 16:] += 2 * b @ a
    with applied(model, folder):
        torch.testing.assert_close(model.state_dict()[BANK], wanted)
    for output in ("checkpoint", "delta"):
        out = tmp_path / output
        merge(
            [("a", folder)], method="simple_average", params={}, space="delta", seed=None, base=base, output=output,
            out=out,
        )  # fmt: skip
        with applied(model, out):
            torch.testing.assert_close(model.state_dict()[BANK], wanted)
