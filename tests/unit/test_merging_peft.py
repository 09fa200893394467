"""Against PEFT itself: adapter space equals add_weighted_adapter, and our adapters load and merge in PEFT."""

import itertools
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from mergetime.artifacts.adapters import load_delta
from mergetime.core.errors import UserError
from mergetime.merging.engine import merge
from mergetime.merging.methods.dare import uniforms

NAMES = ("code", "math", "safety")
# Unequal scalings: PEFT elects signs before it weights, so a merge that weights first would be found out.
ALPHAS = {"code": 16, "math": 4, "safety": 8}


class Net(nn.Module):
    """Two linear layers, the smallest model with more than one LoRA target."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.up = nn.Linear(12, 20)
        self.down = nn.Linear(20, 12)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.down(torch.tanh(self.up(x)))
        return hidden


def save_expert(folder: Path, seed: int, **config: object) -> Path:
    """An adapter with random factors, saved by PEFT."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["up", "down"], **config}
    model = get_peft_model(Net(), LoraConfig(**settings))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture
def experts(tmp_path: Path) -> list[tuple[str, Path]]:
    return [(name, save_expert(tmp_path / name, seed, lora_alpha=ALPHAS[name])) for seed, name in enumerate(NAMES)]


def factors_of(model: PeftModel, adapter: str) -> dict[str, torch.Tensor]:
    return {
        name.replace(f".{adapter}.", "."): parameter.detach()
        for name, parameter in model.named_parameters()
        if f".{adapter}." in name
    }


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("method", "params", "weight", "combination"),
    [
        ("simple_average", {}, 1 / 3, "linear"),
        ("greedy_soup", {}, 1 / 3, "linear"),
        ("task_arithmetic", {"lambda": 0.7}, 0.7, "linear"),
        ("task_arithmetic", {"lambda": -0.7}, -0.7, "linear"),
        ("task_arithmetic", {"lambda": 0.7, "over": "mean"}, 0.7 / 3, "linear"),
        ("ties", {"density": 0.5}, 1.0, "ties"),
        ("ties", {"density": 0.2, "lambda": 0.5}, 0.5, "ties"),
        ("dare_ties", {"density": 1.0}, 1.0, "dare_ties"),
    ],
)
def test_adapter_space_is_add_weighted_adapter(
    experts: list[tuple[str, Path]],
    tmp_path: Path,
    method: str,
    params: dict[str, object],
    weight: float,
    combination: str,
) -> None:
    theirs = PeftModel.from_pretrained(Net(), experts[0][1], adapter_name=NAMES[0])
    for name, folder in experts[1:]:
        theirs.load_adapter(folder, name)
    density = params.get("density")
    theirs.add_weighted_adapter(list(NAMES), [weight] * 3, "all", combination_type=combination, density=density)
    merge(experts, method=method, params=params, space="adapter", seed=1, out=tmp_path / "out")
    ours = PeftModel.from_pretrained(Net(), tmp_path / "out", adapter_name="all")
    wanted, found = factors_of(theirs, "all"), factors_of(ours, "all")
    assert found.keys() == wanted.keys()
    assert len(found) == 4
    for name, factor in wanted.items():
        torch.testing.assert_close(found[name], factor, rtol=0, atol=1e-6)
    inputs = torch.randn(5, 12)
    theirs.set_adapter("all")
    torch.testing.assert_close(ours(inputs), theirs(inputs), rtol=1e-5, atol=1e-5)


def test_dare_in_adapter_space_is_peft_with_our_masks(
    experts: list[tuple[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(experts, method="dare_ties", params={"density": 0.5}, space="adapter", seed=1, out=tmp_path / "out")
    theirs = PeftModel.from_pretrained(Net(), experts[0][1], adapter_name=NAMES[0])
    for name, folder in experts[1:]:
        theirs.load_adapter(folder, name)
    places = itertools.product(("up", "down"), ("A", "B"), NAMES)

    def bernoulli(input: torch.Tensor) -> torch.Tensor:
        module, factor, expert = next(places)
        drawn = uniforms(1, expert, f"base_model.model.{module}.lora_{factor}.weight", 0, input.numel())
        return torch.from_numpy(drawn < 2**15).view(input.shape).float()

    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    theirs.add_weighted_adapter(list(NAMES), [1.0] * 3, "all", combination_type="dare_ties", density=0.5)
    wanted = factors_of(theirs, "all")
    found = factors_of(PeftModel.from_pretrained(Net(), tmp_path / "out", adapter_name="all"), "all")
    for name, factor in wanted.items():
        torch.testing.assert_close(found[name], factor, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"up": 6}, "alpha_pattern": {"down": 32}},
        {"rank_pattern": {"up": 6}, "use_rslora": True},
    ],
)
def test_load_delta_is_what_peft_adds_to_the_base(tmp_path: Path, config: dict[str, object]) -> None:
    folder = save_expert(tmp_path / "math", 3, **config)
    base = weights_of(Net())
    deltas = dict(load_delta(folder))
    assert set(deltas) == {"up.weight", "down.weight"}
    full = weights_of(PeftModel.from_pretrained(Net(), folder).merge_and_unload())
    for name, delta in deltas.items():
        torch.testing.assert_close(delta, full[name] - base[name], rtol=1e-4, atol=1e-5)


def test_a_merged_adapter_with_patterns_loads_in_peft_with_scaling_one(tmp_path: Path) -> None:
    patterns = {"rank_pattern": {"up": 6}, "alpha_pattern": {"down": 32}, "use_rslora": True}
    pool = [(name, save_expert(tmp_path / name, seed, **patterns)) for seed, name in enumerate(NAMES)]
    merge(pool, method="ties", params={}, space="adapter", seed=1, out=tmp_path / "out")
    full = weights_of(PeftModel.from_pretrained(Net(), tmp_path / "out").merge_and_unload())
    base = weights_of(Net())
    factors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for module, rank in (("up", 6), ("down", 4)):
        a, b = (factors[f"base_model.model.{module}.lora_{factor}.weight"] for factor in "AB")
        assert len(a) == rank
        torch.testing.assert_close(b @ a, full[f"{module}.weight"] - base[f"{module}.weight"], rtol=1e-4, atol=1e-4)


def test_factor_space_equals_delta_space_for_one_expert_and_not_for_several(
    experts: list[tuple[str, Path]], tmp_path: Path
) -> None:
    for count in (1, 3):
        for space in ("delta", "adapter"):
            out = tmp_path / f"{space}{count}"
            merge(experts[:count], method="simple_average", params={}, space=space, seed=1, out=out)
        dense, factored = dict(load_delta(tmp_path / f"delta{count}")), dict(load_delta(tmp_path / f"adapter{count}"))
        same = all(torch.allclose(dense[name], factored[name], rtol=1e-4, atol=1e-5) for name in dense)
        assert same == (count == 1)


def test_load_delta_refuses_a_folder_with_two_results(experts: list[tuple[str, Path]], tmp_path: Path) -> None:
    for space in ("delta", "adapter"):
        merge(experts, method="ties", params={}, space=space, seed=1, out=tmp_path / space)
    shutil.copy(tmp_path / "delta/task_vector.safetensors", tmp_path / "adapter")
    with pytest.raises(UserError, match="holds both"):
        list(load_delta(tmp_path / "adapter"))
