"""What is measured of experts: against closed forms and brute force, on models made on the spot."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import measure_expert
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from mergetime.core import provenance
from mergetime.core.errors import UserError, main
from mergetime.data.format import chat
from mergetime.measuring import data_statistics
from mergetime.modalities import learning
from mergetime.modalities.causal_lm.batches import collate, token_losses
from mergetime.modalities.causal_lm.encoding import Encoded

ROOT = Path(__file__).parents[2]
BASE, ADAPTER = ROOT / "config/demo_base", ROOT / "config/demo_adapter"
LEARNING = learning.get("causal_lm")
VOCABULARY = 23
# Of different lengths, so that batches of them are padded.
EXAMPLES = [
    Encoded([3, 1, 4, 1, 5, 9, 2], 3),
    Encoded([2, 7, 1, 8], 2),
    Encoded([6, 6, 2, 6, 0, 7, 0, 1, 5], 4),
    Encoded([1, 6, 1, 8, 0, 3], 1),
]


@pytest.fixture
def llama() -> LlamaForCausalLM:
    """A Llama with random weights."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"attn_implementation": "eager"}
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
        **settings,
    )
    return LlamaForCausalLM(config).eval()


class Softmax(torch.nn.Module):
    """Logits linear in fixed features of the token before: the smallest model with a known Fisher information."""

    def __init__(self, features: torch.Tensor, labels: int) -> None:
        super().__init__()
        self.features = features
        self.head = torch.nn.Linear(features.shape[1], labels, bias=False)
        self.device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.features[input_ids]))


def linear_names(model: LlamaForCausalLM) -> list[str]:
    return [name for name, _ in model.named_parameters() if "proj" in name]


def test_fisher_of_a_softmax_is_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(3)
    model = Softmax(torch.randn(10, 4, generator=generator), labels=10)
    found = data_statistics.fisher(LEARNING, model, EXAMPLES, ["head.weight"], seed=1, draws=2000)["head.weight"]  # type: ignore[arg-type]
    expected = torch.zeros(10, 4)
    for example in EXAMPLES:
        for before in example.ids[example.prompt - 1 : -1]:
            features = model.features[before]
            probabilities = model.head(features).softmax(dim=-1).detach()
            expected += (probabilities * (1 - probabilities))[:, None] * features.square() / len(EXAMPLES)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.15, atol=0.01)
    assert float((found - expected).sum() / expected.sum()) == pytest.approx(0.0, abs=0.02)


def test_fisher_is_the_mean_of_squared_gradients_of_each_chat(
    llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The likeliest labels instead of drawn ones, so that brute force knows them.
    monkeypatch.setattr(data_statistics, "_draw", lambda log_probabilities, _: log_probabilities.argmax(dim=-1))
    names = [*linear_names(llama), "model.norm.weight"]
    before = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    found = data_statistics.fisher(LEARNING, llama, EXAMPLES, names, seed=1, draws=2)
    assert sorted(found) == sorted(names)
    parameters = dict(llama.named_parameters())
    expected = {name: torch.zeros_like(parameters[name]) for name in names}
    for example in EXAMPLES:
        llama.zero_grad()
        logits = llama(torch.tensor([example.ids])).logits[0, example.prompt - 1 : -1]
        torch.nn.functional.cross_entropy(logits, logits.argmax(dim=-1), reduction="sum").backward()
        for name in names:
            gradient = parameters[name].grad
            assert gradient is not None
            expected[name] += gradient.square() / len(EXAMPLES)
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-7)
    assert all(torch.equal(tensor, before[name]) for name, tensor in llama.state_dict().items())
    assert all(parameter.requires_grad for parameter in parameters.values())


def test_labels_are_drawn_from_the_model_and_its_seed() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0])
    rows = probabilities.log().expand(40_000, 5)
    drawn = data_statistics._draw(rows, torch.Generator().manual_seed(1))
    shares = torch.bincount(drawn, minlength=5) / len(drawn)
    torch.testing.assert_close(shares, probabilities, rtol=0, atol=0.01)
    assert shares[1] == shares[4] == 0.0
    assert torch.equal(drawn, data_statistics._draw(rows, torch.Generator().manual_seed(1)))
    assert not torch.equal(drawn, data_statistics._draw(rows, torch.Generator().manual_seed(2)))


def test_fisher_repeats_by_seed(llama: LlamaForCausalLM) -> None:
    names = linear_names(llama)
    first, again, other = (data_statistics.fisher(LEARNING, llama, EXAMPLES, names, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in names)
    assert not all(torch.equal(first[name], other[name]) for name in names)
    assert all(bool((tensor >= 0).all()) for tensor in first.values())


def test_fisher_refuses_a_parameter_that_the_model_lacks(llama: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match=r"no parameter model\.nothing\.weight"):
        data_statistics.fisher(LEARNING, llama, EXAMPLES, ["model.nothing.weight"], seed=1)


def test_gram_is_that_of_the_inputs_without_padding(llama: LlamaForCausalLM) -> None:
    names = linear_names(llama)
    batch = collate(EXAMPLES, padding=0)
    real = batch["attention_mask"].bool()
    assert not real.all(), "the batch is not padded"
    captured: dict[str, np.ndarray] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _, inputs: captured.update({f"{name}.weight": inputs[0].detach()[real].double().numpy()})

    handles = [
        module.register_forward_pre_hook(keep(name))
        for name, module in llama.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    llama(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    for handle in handles:
        handle.remove()
    found = data_statistics.gram(LEARNING, llama, EXAMPLES, [*names, "model.norm.weight", "model.embed_tokens.weight"])
    assert sorted(found) == sorted(names)
    for name in names:
        inputs = captured[name]
        assert len(inputs) == sum(len(example.ids) for example in EXAMPLES)
        np.testing.assert_allclose(found[name].numpy(), inputs.T @ inputs / len(inputs), rtol=1e-4, atol=1e-6)
        assert found[name].dtype == torch.float32
    assert not any(module._forward_pre_hooks for module in llama.modules())


def test_gram_in_fp32_of_wide_layers(llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    names = linear_names(llama)
    double = data_statistics.gram(LEARNING, llama, EXAMPLES, names)
    monkeypatch.setattr(data_statistics, "_MOST_INPUTS_IN_DOUBLE", 0)
    single = data_statistics.gram(LEARNING, llama, EXAMPLES, names)
    for name in names:
        torch.testing.assert_close(single[name], double[name], rtol=1e-4, atol=1e-6)


def trained(llama: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """Updates that fit the examples; the model is left as it was."""
    parameters = dict(llama.named_parameters())
    base = {name: parameters[name].detach().clone() for name in linear_names(llama)}
    optimizer = torch.optim.Adam([parameters[name] for name in base], lr=3e-3)
    batch = collate(EXAMPLES, padding=0)
    for _ in range(60):
        optimizer.zero_grad()
        logits = llama(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        token_losses(logits, batch["labels"])[:, 0].sum().backward()
        optimizer.step()
    deltas = {name: parameters[name].detach() - weight for name, weight in base.items()}
    for name, weight in base.items():
        parameters[name].data = weight
    return deltas


MASK: dict[str, Any] = {
    "density": 0.05,
    "steps": 10,
    "learning_rate": 0.1,
    "l1": 1.0,
    "bias": 5.0,
    "batch_size": 16,
    "seed": 1,
}


def masked_loss(llama: LlamaForCausalLM, deltas: dict[str, torch.Tensor], mask: dict[str, torch.Tensor]) -> float:
    base = dict(llama.named_parameters())
    weights = {name: base[name].detach() + mask[name] * delta for name, delta in deltas.items()}
    return data_statistics.mean_loss(LEARNING, llama, weights, EXAMPLES, batch_size=2)


def test_a_trained_mask_keeps_exactly_k_and_beats_random_and_largest(llama: LlamaForCausalLM) -> None:
    deltas = trained(llama)
    base = dict(llama.named_parameters())
    found = data_statistics.mask(LEARNING, llama, base, deltas, EXAMPLES, **MASK)
    entries = sum(delta.numel() for delta in deltas.values())
    assert sum(int(kept.sum()) for kept in found.values()) == int(0.05 * entries)
    assert all(kept.dtype == torch.bool and kept.shape == deltas[name].shape for name, kept in found.items())

    generator = torch.Generator().manual_seed(5)
    noise = {name: torch.rand(delta.shape, generator=generator) for name, delta in deltas.items()}
    by_chance = masked_loss(llama, deltas, data_statistics.largest(noise, int(0.05 * entries)))
    untrained = data_statistics.mask(LEARNING, llama, base, deltas, EXAMPLES, **(MASK | {"steps": 0}))
    magnitudes = {name: deltas[name].abs() for name in sorted(deltas)}
    largest = data_statistics.largest(magnitudes, int(0.05 * entries))
    assert all(torch.equal(untrained[name], largest[name]) for name in deltas)
    assert masked_loss(llama, deltas, found) < masked_loss(llama, deltas, largest) < by_chance


def test_a_mask_repeats_by_seed_and_leaves_the_model_alone(llama: LlamaForCausalLM) -> None:
    deltas = trained(llama)
    base = dict(llama.named_parameters())
    before = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    few = MASK | {"batch_size": 1, "steps": 3, "learning_rate": 1.0}
    first, again = (data_statistics.mask(LEARNING, llama, base, deltas, EXAMPLES, **few) for _ in range(2))
    other = data_statistics.mask(LEARNING, llama, base, deltas, EXAMPLES, **(few | {"seed": 2}))
    assert all(torch.equal(first[name], again[name]) for name in deltas)
    assert not all(torch.equal(first[name], other[name]) for name in deltas)
    assert all(torch.equal(tensor, before[name]) for name, tensor in llama.state_dict().items())


def test_the_penalty_makes_shares_small(llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    deltas = trained(llama)
    seen: list[Any] = []
    shares = []
    original = data_statistics.largest

    def largest(values: Any, *given: Any) -> Any:
        seen.append(values)
        return original(values, *given)

    monkeypatch.setattr(data_statistics, "largest", largest)
    for l1 in (0.0, 1e6):
        data_statistics.mask(LEARNING, llama, dict(llama.named_parameters()), deltas, EXAMPLES, **(MASK | {"l1": l1}))
        shares.append(sum(float(score.detach().sigmoid().sum()) for score in seen[-1].values()))
    assert shares[1] < shares[0]


def test_a_mask_that_diverges_is_refused(llama: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="no longer finite at learning_rate 1e\\+39; lower it"):
        data_statistics.mask(
            LEARNING,
            llama,
            dict(llama.named_parameters()),
            trained(llama),
            EXAMPLES,
            **(MASK | {"learning_rate": 1e39}),
        )


def test_the_largest_are_exactly_as_many_and_ties_have_an_order() -> None:
    values = {"a": torch.tensor([[1.0, 2.0], [2.0, 0.0]]), "b": torch.tensor([2.0, 3.0])}
    assert data_statistics.largest(values, 2)["a"].tolist() == [[False, True], [False, False]]
    assert data_statistics.largest(values, 2)["b"].tolist() == [False, True]
    second = {"a": torch.tensor([[0.0, 1.0], [5.0, 0.0]]), "b": torch.tensor([5.0, 0.0])}
    assert data_statistics.largest(values, 3, second)["a"].tolist() == [[False, False], [True, False]]
    assert data_statistics.largest(values, 3, second)["b"].tolist() == [True, True]
    assert all(bool(kept.all()) for kept in data_statistics.largest(values, 6).values())


def test_normalised_has_unit_root_mean_square() -> None:
    statistic = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0, 0.0]])}
    assert data_statistics.norm(statistic) == 5.0
    assert data_statistics.normalised(statistic)["a"].tolist() == pytest.approx([1.2, 0.0])
    zero = {"a": torch.zeros(2)}
    assert torch.equal(data_statistics.normalised(zero)["a"], zero["a"])


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """The demo's base as fetched, its adapter as an expert of it, and a few chats."""
    base, expert = tmp_path / "base", tmp_path / "expert/1x"
    base.mkdir()
    expert.mkdir(parents=True)
    for folder, copy in ((BASE, base), (ADAPTER, expert)):
        for file in folder.iterdir():
            (copy / file.name).symlink_to(file)
    digest = provenance.sha256(BASE / "model.safetensors")
    (base / "fetched.json").write_text(json.dumps({"facts": {"weights_sha256": digest}}))
    (tmp_path / "expert/expert.json").write_text(json.dumps({"facts": {"base_sha256": digest}}))
    rows = [{"messages": chat(f"Compute {n}+2.", f"{n}+2={n + 2}")} for n in range(6)]
    rows.insert(1, {"messages": chat("Compute 1+1. " * 60, "2")})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    return tmp_path


def arguments(study: Path, kind: str, *more: str, **changed: Path) -> list[str]:
    paths = {"base": study / "base", "expert": study / "expert/1x", "data": study / "train.parquet"}
    paths |= {"out": study / "out"} | changed
    listed = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
    return [*listed, "--kind", kind, "--examples", "4", "--max-tokens", "100", *more]


def test_the_command_measures_an_adapter_to_the_same_bytes(study: Path) -> None:
    settings = ("--set", "density=0.01", "--set", "steps=2")
    for kind, more in (("fisher", ()), ("gram", ()), ("mask", settings)):
        measure_expert.run(arguments(study, kind, *more))
    out = study / "out"
    assert sorted(file.name for file in out.iterdir()) == sorted(
        f"{kind}.{ending}" for kind in ("fisher", "gram", "mask") for ending in ("json", "safetensors")
    )
    base = load_file(BASE / "model.safetensors")
    found = {kind: load_file(out / f"{kind}.safetensors") for kind in ("fisher", "gram", "mask")}
    facts = {kind: provenance.read(out / f"{kind}.json")["facts"] for kind in found}
    for name, tensor in found["fisher"].items():
        assert tensor.dtype == torch.float32
        assert tensor.shape == found["mask"][name].shape == base[name].shape
        assert found["mask"][name].dtype == torch.bool
        assert found["gram"][name].shape == (base[name].shape[1],) * 2
    assert "model.layers.0.mlp.up_proj.weight" in found["fisher"]
    entries = sum(tensor.numel() for tensor in found["mask"].values())
    assert facts["mask"]["kept"] == sum(int(kept.sum()) for kept in found["mask"].values()) == int(0.01 * entries)
    assert set(facts["mask"]["loss"]) == {"base", "expert", "masked"}
    assert facts["fisher"]["examples"] == 4
    assert facts["fisher"]["passed_over"] == 1
    inputs = set(provenance.read(out / "fisher.json")["inputs"])
    assert inputs == {"base", "data", "expert adapter_config.json", "expert adapter_model.safetensors"}
    mean_square = sum(float(tensor.double().square().sum()) for tensor in found["fisher"].values()) / entries
    assert mean_square == pytest.approx(1.0)
    with safe_open(out / "fisher.safetensors", framework="pt") as file:
        assert float(file.metadata()["norm"]) == facts["fisher"]["norm"] > 0

    again = arguments(study, "fisher", out=study / "again")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "OMP_NUM_THREADS": "1"}
    script = str(ROOT / "scripts/measure_expert.py")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    measure_expert.run(arguments(study, "fisher", out=study / "here"))
    torch.set_num_threads(threads)
    subprocess.run([sys.executable, script, *again], env=environment, check=True, capture_output=True, timeout=300)
    assert (study / "again/fisher.safetensors").read_bytes() == (study / "here/fisher.safetensors").read_bytes()


def test_the_command_takes_task_vectors_and_full_checkpoints_alike(study: Path) -> None:
    from mergetime.artifacts.adapters import load_delta

    deltas = dict(load_delta(study / "expert/1x"))
    (study / "dense").mkdir()
    save_file({name: delta.contiguous() for name, delta in deltas.items()}, study / "dense/task_vector.safetensors")
    full = study / "full"
    full.mkdir()
    (full / "config.json").symlink_to(BASE / "config.json")
    weights = load_file(BASE / "model.safetensors")
    save_file({name: weight + deltas.get(name, 0.0) for name, weight in weights.items()}, full / "model.safetensors")
    found = []
    for kind, expert in (("fisher", "expert/1x"), ("fisher", "dense"), ("fisher", "full")):
        settings = ("--set", "normalise=none")
        measure_expert.run(arguments(study, kind, *settings, expert=study / expert, out=study / f"out/{expert}"))
        found.append(load_file(study / f"out/{expert}/{kind}.safetensors"))
    adapter, dense, whole = found
    assert all(torch.equal(adapter[name], dense[name]) for name in deltas)
    assert set(whole) == set(weights), "a full checkpoint is measured whole"
    for name in deltas:
        torch.testing.assert_close(whole[name], adapter[name], rtol=1e-3, atol=1e-8)


def test_a_checkpoint_that_is_the_base_has_nothing_to_measure(study: Path) -> None:
    with pytest.raises(UserError, match="its weights are the base's; there is nothing to measure"):
        measure_expert.run(arguments(study, "gram", expert=study / "base"))


@pytest.mark.parametrize(
    ("kind", "pairs", "message"),
    [
        ("fischer", [], "--kind fischer: there is no such statistic; did you mean 'fisher'"),
        ("gram", ["density=0.1"], "--set density=0.1: gram has no setting 'density'; known: none"),
        ("mask", ["densty=0.1"], "mask has no setting 'densty'; did you mean 'density'"),
        ("mask", ["density"], "--set density: is not of the form name=value"),
        ("mask", ["steps=2", "steps=3"], "--set steps=3: is given twice"),
    ],
)
def test_settings_that_are_refused(kind: str, pairs: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        measure_expert.read_settings(kind, pairs)
    assert message in str(caught.value)


def test_settings_outside_their_domain_are_refused() -> None:
    with pytest.raises(ValueError, match="density: 0 is outside"):
        measure_expert.read_settings("mask", ["density=0"])
    with pytest.raises(ValueError, match=r"steps: 2\.5 is not a whole number"):
        measure_expert.read_settings("mask", ["steps=2.5"])
    with pytest.raises(ValueError, match="normalise: 'maybe' is not one of model, none"):
        measure_expert.read_settings("fisher", ["normalise=maybe"])


def test_data_without_usable_chats_is_refused(study: Path) -> None:
    empty = study / "empty.parquet"
    pq.write_table(pq.read_table(study / "train.parquet").slice(0, 0), empty)
    with pytest.raises(UserError, match=r"empty\.parquet: none of its 0 chats is within --max-tokens 100"):
        measure_expert.run(arguments(study, "gram", data=empty))
    pq.write_table(pa.table({"text": ["x"]}), empty)
    with pytest.raises(UserError, match=r"empty\.parquet: has no column messages"):
        measure_expert.run(arguments(study, "gram", data=empty))
    with pytest.raises(UserError, match="--examples 0: measure on one chat at least"):
        measure_expert.run([*arguments(study, "gram"), "--examples", "0"])


def test_an_expert_of_another_base_is_refused(study: Path) -> None:
    record = study / "expert/expert.json"
    record.write_text(json.dumps({"facts": {"base_sha256": "0123456789"}}))
    with pytest.raises(UserError, match=r"expert .*1x: trained on base 01234567\.\.\., base .* is"):
        measure_expert.run(arguments(study, "gram"))
    record.unlink()
    other = study / "other"
    other.mkdir()
    save_file({"model.layers.0.mlp.up_proj.weight": torch.ones(3, 3)}, other / "task_vector.safetensors")
    with pytest.raises(UserError, match=r"up_proj\.weight has shape \(3, 3\).* belongs to another base"):
        measure_expert.run(arguments(study, "gram", expert=other))
    assert not (study / "out").exists()


def test_refusals_are_one_line(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for changed in ({"base": study / "nowhere"}, {"expert": study / "nowhere"}, {"data": study / "nowhere.parquet"}):
        with pytest.raises(SystemExit) as ended:
            main(partial(measure_expert.run, arguments(study, "gram", **changed)))
        assert ended.value.code == 1
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith("error: ")
        assert "nowhere" in message
