"""Paths between experts and their barriers, on the demo's base with small adapters drawn at random."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from mergetime.analysis import barriers
from mergetime.analysis.barriers import Barrier, barrier
from mergetime.artifacts.adapters import load_delta
from mergetime.artifacts.apply import applied
from mergetime.core.errors import UserError
from mergetime.data.format import chat
from mergetime.evaluation.losses import validation_losses
from mergetime.measuring.columns import ALL, PATHS
from mergetime.measuring.connectivity import interpolated, measure
from mergetime.measuring.loading import domain_loss
from mergetime.merging.opening import open_pool
from mergetime.modalities import learning
from mergetime.modalities.causal_lm.encoding import Encoded, encode_chat

ROOT = Path(__file__).parents[2]
BASE, ADAPTER = ROOT / "config/demo_base", ROOT / "config/demo_adapter"
LEARNING = learning.get("causal_lm")
ALPHAS = [0.0, 0.25, 0.5, 1.0]
CHATS = {
    "math": [chat("What is 2 and 3?", "It is 5."), chat("What is 4 less 1?", "It is 3, as one sees.")],
    "sea": [chat("Describe the sea.", "The sea is wide, blue and cold.")],
}


def write_adapter(folder: Path, seed: int, *, rank: int = 2, alpha: float = 3.0, modules: int = 6) -> Path:
    """An adapter of the demo's base in PEFT's layout, on some of its modules, with factors drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}
    for key, tensor in list(load_file(ADAPTER / "adapter_model.safetensors").items())[: 2 * modules]:
        shape = (rank, tensor.shape[1]) if "lora_A" in key else (tensor.shape[0], rank)
        weights[key] = 0.3 * torch.randn(shape, generator=generator)
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    found: PreTrainedModel = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    return found


@pytest.fixture(scope="module")
def examples() -> dict[str, list[Encoded]]:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    return {domain: [encode_chat(tokenizer, messages) for messages in chats] for domain, chats in CHATS.items()}


@pytest.fixture
def experts(tmp_path: Path) -> list[tuple[str, Path]]:
    """Two experts of equal rank and different scaling."""
    return [("a", write_adapter(tmp_path / "a", 1)), ("b", write_adapter(tmp_path / "b", 2, alpha=1.0))]


def measured(
    model: PreTrainedModel, experts: list[tuple[str, Path]], examples: dict[str, list[Encoded]], **given: Any
) -> pd.DataFrame:
    domains = dict(zip([name for name, _ in experts], ["math", "sea", "math"], strict=False))
    settings: dict[str, Any] = {"alphas": ALPHAS, "spaces": ["delta", "adapter"], "batch_size": 2} | given
    with open_pool(experts, base=BASE) as pool:
        return measure(LEARNING, model, pool, domains, examples, **settings)


def loss_of(model: PreTrainedModel, folder: Path, examples: list[Encoded]) -> float:
    with applied(model, folder):
        return domain_loss(validation_losses(LEARNING, model, examples, 2))


def losses(frame: pd.DataFrame, **of: object) -> list[float]:
    for name, value in of.items():
        frame = frame[frame[name] == value]
    return frame.sort_values("alpha")["loss"].tolist()


def test_the_ends_are_the_experts(
    model: PreTrainedModel, experts: list[tuple[str, Path]], examples: dict[str, list[Encoded]]
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = measured(model, experts, examples)
    assert list(found.columns) == list(PATHS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for space in ("delta", "adapter"):
        for domain, own in examples.items():
            path = losses(found, space=space, domain=domain)
            assert path[-1] == loss_of(model, experts[0][1], own)
            assert path[0] == loss_of(model, experts[1][1], own)
        mean = [sum(both) / 2 for both in zip(*(losses(found, space=space, domain=d) for d in examples), strict=True)]
        assert losses(found, space=space, domain=ALL) == pytest.approx(mean)
    assert losses(found, space="delta", domain=ALL)[1:-1] != losses(found, space="adapter", domain=ALL)[1:-1]


@pytest.mark.parametrize("space", ["delta", "adapter"])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_weights_on_the_path_are_those_of_the_formula(
    model: PreTrainedModel, experts: list[tuple[str, Path]], space: str, alpha: float
) -> None:
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    updates = [dict(load_delta(folder)) for _, folder in experts]
    factors = [load_file(folder / "adapter_model.safetensors") for _, folder in experts]
    with open_pool(experts, base=BASE) as pool, interpolated(model, pool, 0, 1, alpha, space):
        modules = {module: pair.module for module, pair in pool.adapters[0].pairs.items()}
        assert {f"{module}.weight" for module in modules} == set(updates[0])
        for name, parameter in model.named_parameters():
            if name not in updates[0]:
                assert torch.equal(parameter, before[name])
                continue
            key = f"base_model.model.{modules[name.removesuffix('.weight')]}.lora_"
            # Scalings lora_alpha / r: 3 / 2 and 1 / 2.
            b, a = (
                alpha * 1.5**0.5 * factors[0][f"{key}{f}.weight"] + (1 - alpha) * 0.5**0.5 * factors[1][f"{key}{f}.weight"]
                for f in "BA"
            )  # fmt: skip
            wanted = b @ a if space == "adapter" else alpha * updates[0][name] + (1 - alpha) * updates[1][name]
            torch.testing.assert_close(parameter - before[name], wanted, atol=1e-5, rtol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())


def test_equal_experts_have_no_barrier(
    model: PreTrainedModel, examples: dict[str, list[Encoded]], tmp_path: Path
) -> None:
    experts = [("a", write_adapter(tmp_path / "a", 1)), ("b", write_adapter(tmp_path / "b", 1))]
    found = barriers.table(measured(model, experts, examples), [])
    assert found["barrier"].abs().max() < 1e-5
    assert found["barrier_linear"].abs().max() < 1e-5


def test_three_experts_share_their_ends(
    model: PreTrainedModel,
    experts: list[tuple[str, Path]],
    examples: dict[str, list[Encoded]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def noted(model: PreTrainedModel, expert: Path, *given: Any) -> Any:
        calls.append(expert.name)
        return applied(model, expert, *given)

    monkeypatch.setattr("mergetime.measuring.connectivity.applied", noted)
    three = [*experts, ("c", write_adapter(tmp_path / "c", 3))]
    found = measured(model, three, examples, spaces=["delta"])
    assert calls == ["a", "b", "c"]
    assert len(found[found["domain"] == ALL]) == 3 * len(ALPHAS)
    assert losses(found, first="a", second="b", domain="math")[-1] == losses(found, first="a", second="c")[-1]
    # a and c are both of math: their mean is that one loss.
    assert set(found[(found["first"] == "a") & (found["second"] == "c")]["domain"]) == {"math", ALL}
    table = barriers.table(found.assign(pool="p"), ["pool"])
    means = table[table["first"].isna()]
    assert means.set_index("domain")["pairs"].to_dict() == {"math": 3, "sea": 2, ALL: 3}
    pairs = table[table["first"].notna() & (table["domain"] == ALL)]["barrier"]
    mean = means[means["domain"] == ALL].iloc[0]
    assert mean["barrier"] == pytest.approx(pairs.mean())
    assert mean["stderr"] == pytest.approx(pairs.std() / 3**0.5)


def full_expert(folder: Path, seed: int) -> Path:
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def test_whole_models_are_interpolated_weight_by_weight(
    model: PreTrainedModel, examples: dict[str, list[Encoded]], tmp_path: Path
) -> None:
    experts = [(name, full_expert(tmp_path / name, seed)) for seed, name in enumerate("ab")]
    found = measured(model, experts, examples, spaces=["delta"], alphas=[0.0, 0.25, 1.0])
    middle = {
        name: 0.25 * tensor + 0.75 * load_file(experts[1][1] / "model.safetensors")[name]
        for name, tensor in load_file(experts[0][1] / "model.safetensors").items()
    }
    shutil.copytree(experts[0][1], tmp_path / "middle")
    save_file(middle, tmp_path / "middle" / "model.safetensors", metadata={"format": "pt"})
    wanted = loss_of(model, tmp_path / "middle", examples["math"])
    assert losses(found, domain="math")[1] == pytest.approx(wanted, rel=1e-6)
    with pytest.raises(UserError, match="full checkpoints have no LoRA factors to interpolate"):
        measured(model, experts, examples)


def test_what_cannot_be_measured_is_one_line(
    model: PreTrainedModel, experts: list[tuple[str, Path]], examples: dict[str, list[Encoded]], tmp_path: Path
) -> None:
    other = [experts[0], ("c", write_adapter(tmp_path / "c", 3, rank=3))]
    assert len(measured(model, other, examples, spaces=["delta"])) == 3 * len(ALPHAS)
    with pytest.raises(UserError, match="experts a and c have different ranks: adapter space cannot interpolate"):
        measured(model, other, examples)
    with pytest.raises(UserError, match=r"alphas \[0\.5, 1\.0\]: give a rising list from 0 to 1"):
        measured(model, experts, examples, alphas=[0.5, 1.0])
    with pytest.raises(UserError, match="expert b: its domain sea has no validation examples here"):
        measured(model, experts, {"math": examples["math"]})
    with pytest.raises(UserError, match="a path is between two experts: give two at least, here are 1"):
        measured(model, experts[:1], examples)


@pytest.mark.parametrize(
    ("losses", "wanted"),
    [
        ([1.0, 2.0, 1.5], Barrier(0.75, 0.75, 0.5, 1.5, 1.0)),
        ([1.0, 1.2, 3.0], Barrier(1.0, 0.0, 1.0, 3.0, 1.0)),
        ([2.0, 1.0, 2.0], Barrier(0.0, 0.0, 0.0, 2.0, 2.0)),
        ([3.0, 3.0, 1.0], Barrier(1.0, 1.0, 0.0, 1.0, 3.0)),
    ],
    ids=["bump", "convex with one high end", "convex", "ties"],
)
def test_barriers_by_hand(losses: list[float], wanted: Barrier) -> None:
    assert barrier([0.0, 0.5, 1.0], losses) == wanted


def test_a_quadratic_bowl_has_no_barrier_above_its_line() -> None:
    alphas = [number / 10 for number in range(11)]
    found = barrier(alphas, [(alpha - 0.3) ** 2 for alpha in alphas])
    assert found.barrier_linear == 0.0
    assert found.barrier == pytest.approx((0.49 - 0.09) / 2)
    assert found.alpha == 1.0


@pytest.mark.parametrize(("alphas", "path"), [([0.0, 0.5], [1.0, 2.0]), ([0.0, 1.0], [1.0]), ([], [])])
def test_half_a_path_is_refused(alphas: list[float], path: list[float]) -> None:
    with pytest.raises(ValueError, match="a path has one loss for each alpha from 0 to 1"):
        barrier(alphas, path)
