"""LoRA on parameters (``target_parameters``), banks of experts above all: what PEFT computes is what the merge computes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, MixtralConfig, Qwen3MoeConfig

from mergetime.architectures.architecture import Architecture
from mergetime.architectures.files import architecture_of
from mergetime.artifacts.apply import applied
from mergetime.core.errors import UserError
from mergetime.merging.engine import merge
from tests.unit.test_merging_embeddings import adapter, assert_close, base_at, load, logits, refusal, run, with_adapter

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 40,
    "initializer_range": 0.2,
}
HEADS: dict[str, Any] = {"head_dim": 8}
# The second has square matrices in one of its banks, of which no shape tells which way they are held.
CONFIGS = {
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, **HEADS, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=8),
}
BANKS = ["experts.gate_up_proj", "mlp.experts.down_proj"]
BANK = "model.layers.0.mlp.experts.gate_up_proj"
KINDS: dict[str, dict[str, Any]] = {
    "both": {"target_modules": ["q_proj"], "target_parameters": BANKS},
    "patterns": {
        "target_modules": ["q_proj"],
        "target_parameters": ["gate_up_proj", "down_proj"],
        "rank_pattern": {"gate_up_proj": 3, r"layers\.1\.mlp\.experts\.down_proj": 1},
        "alpha_pattern": {"experts.down_proj": 7, "q_proj": 3},
    },
    "rslora": {"target_modules": [], "target_parameters": BANKS, "use_rslora": True, "r": 3},
    "first": {"target_modules": ["v_proj"], "target_parameters": BANKS[:1]},
    "second": {"target_modules": [], "target_parameters": BANKS[1:]},
    "matrices": {"target_modules": ["v_proj"], "target_parameters": ["q_proj.weight", "gate.weight", "down_proj"]},
}


def moe_at(folder: Path, kind: str) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS[kind]).save_pretrained(folder)
    return folder


def fused(folder: Path, out: Path) -> Path:
    """The same base with the names, and the banks, of the loaded model."""
    out.mkdir()
    weights = {name: tensor.contiguous() for name, tensor in load(folder).state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_bytes((folder / "config.json").read_bytes())
    return out


@pytest.fixture(scope="module", params=list(CONFIGS))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moe_at(tmp_path_factory.mktemp("moe") / "split", request.param)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moe_at(tmp_path_factory.mktemp("moe") / "split", "mixtral")


def states(folder: Path) -> dict[str, torch.Tensor]:
    """The weights as the loaded model has them."""
    weights: dict[str, torch.Tensor] = load(folder).state_dict()
    return weights


@pytest.mark.parametrize("kind", KINDS)
def test_the_merge_is_what_peft_merges(kind: str, base: Path, tmp_path: Path) -> None:
    expert = adapter(base, tmp_path / "a", 1, **KINDS[kind])
    model = with_adapter(base, expert)
    wanted = logits(model)
    assert float((logits(load(base)) - wanted).abs().max()) > 0.1
    by_peft = model.merge_and_unload().state_dict()
    for of_base in (base, fused(base, tmp_path / "fused")):
        out = run([expert], tmp_path / f"out_{of_base.name}", of_base, "task_arithmetic", output="checkpoint")
        assert load_file(out / "model.safetensors").keys() == load_file(of_base / "model.safetensors").keys()
        assert_close(logits(load(out)), wanted)
        for name, tensor in states(out).items():
            torch.testing.assert_close(tensor, by_peft[name], rtol=1e-5, atol=1e-6)


def test_a_task_vector_is_what_peft_adds(base: Path, tmp_path: Path) -> None:
    expert = adapter(base, tmp_path / "a", 1, **KINDS["both"])
    by_peft, before = with_adapter(base, expert).merge_and_unload().state_dict(), states(base)
    whole = fused(base, tmp_path / "fused")
    for of_base in (base, whole):
        written = load_file(run([expert], tmp_path / f"out_{of_base.name}", of_base) / "task_vector.safetensors")
        known = architecture_of(json.loads((base / "config.json").read_text()))
        for name, tensor in before.items():
            added = update_of(written, known, name)
            added = torch.zeros_like(tensor) if added is None else added
            torch.testing.assert_close(added, by_peft[name] - tensor, rtol=1e-5, atol=1e-6)
    loaded = load(base)
    for folder in (expert, tmp_path / "out_fused"):
        with applied(loaded, folder):
            assert_close(logits(loaded), logits(with_adapter(base, expert)))


def update_of(written: dict[str, torch.Tensor], known: Architecture, name: str) -> torch.Tensor | None:
    """The update of a parameter of the loaded model, from a task vector in its names or in those of a split base."""
    module, _, bank = name.rpartition(".")
    if name in written or bank not in known.banks:
        return written.get(name)
    parts = known.banks[bank]
    places = range(sum(key.startswith(f"{module}.") and f".{parts[0]}." in key for key in written))
    return torch.stack([torch.cat([written[f"{module}.{place}.{part}.weight"] for part in parts]) for place in places])


def test_experts_of_all_kinds_are_averaged(base: Path, tmp_path: Path) -> None:
    experts = [adapter(base, tmp_path / name, seed, **KINDS[name]) for seed, name in enumerate(KINDS)]
    experts.append(adapter(base, tmp_path / "plain", 9, target_modules=["q_proj"]))
    merged = [with_adapter(base, expert).merge_and_unload().state_dict() for expert in experts]
    for of_base in (base, fused(base, tmp_path / "fused")):
        out = run(experts, tmp_path / f"out_{of_base.name}", of_base, output="checkpoint")
        for name, tensor in states(out).items():
            mean = torch.stack([state[name] for state in merged]).mean(dim=0)
            torch.testing.assert_close(tensor, mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["model_stock", "ties", "della", "tsv_merge", "subspace_boosting_ties"])
def test_methods_of_every_level_merge_banks(method: str, mixtral: Path, tmp_path: Path) -> None:
    experts = [adapter(mixtral, tmp_path / name, seed, **KINDS["both"]) for seed, name in enumerate("ab")]
    for of_base in (mixtral, fused(mixtral, tmp_path / "fused")):
        out = run(experts, tmp_path / f"out_{of_base.name}", of_base, method, output="checkpoint")
        assert not states(out)[BANK].equal(states(mixtral)[BANK])


def test_knots_and_adapters_and_adapter_space_are_refused(mixtral: Path, tmp_path: Path) -> None:
    whole = fused(mixtral, tmp_path / "fused")
    expert = adapter(mixtral, tmp_path / "a", 1, **KINDS["both"])
    words = f"expert a ({expert}): adapts {BANK} by target_parameters"
    assert (
        refusal([expert], tmp_path / "out", whole, output="adapter")
        == f"{words}, which a merged adapter does not hold; use --output delta or checkpoint"
    )
    assert refusal([expert], tmp_path / "out", whole, method="knots") == (
        f"knots: aligns LoRA factors; {words.replace('): ', ') ')}"
    )
    with pytest.raises(UserError) as refused:
        merge([("a", expert)], method="ties", params={}, space="adapter", seed=1, base=whole, out=tmp_path / "out")
    assert str(refused.value) == f"{words}, which adapter space cannot merge; use --space delta"
    assert (
        refusal([expert], tmp_path / "out", None)
        == f"expert a ({expert}): adapts {BANKS[0]} by target_parameters, which is merged as an update of the base; "
        "give --base its folder"
    )


def edit(folder: Path, drop: str = "", **changes: Any) -> Path:
    """Change the config of an adapter, and drop the factors whose keys hold a text."""
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    weights = load_file(folder / "adapter_model.safetensors")
    kept = {key: tensor for key, tensor in weights.items() if not drop or drop not in key}
    save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target_parameters": [*BANKS, "experts.w9"]}, "has no LoRA factors of experts.w9, though target_parameters"),
        ({"target_parameters": BANKS[:1]}, "model.layers.0.mlp.experts has LoRA factors of 2 parameters, and base"),
        ({"target_parameters": "down_proj"}, "target_parameters of adapter_config.json is not a list of names"),
        ({"target_parameters": [1]}, "target_parameters of adapter_config.json is not a list of names"),
        ({"drop": "0.mlp.experts.lora_B"}, "model.layers.0.mlp.experts.down_proj lacks one of its two LoRA factors"),
        ({"r": 4}, "experts.gate_up_proj has LoRA factors of 8x16 and 48x8, which at rank 4 do not fit the base's 4 "),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], words: str, mixtral: Path, tmp_path: Path) -> None:
    expert = edit(adapter(mixtral, tmp_path / "a", 1, **KINDS["rslora"] | {"r": 2}), **changes)
    message = refusal([expert], tmp_path / "out", mixtral)
    assert message.startswith(f"expert a ({expert}): ")
    assert words in message


def test_an_adapter_of_another_base_is_refused(mixtral: Path, tmp_path: Path) -> None:
    expert = adapter(mixtral, tmp_path / "a", 1, target_modules=[], target_parameters=["down_proj"])
    other = base_at(tmp_path / "qwen2", tied=False)
    message = refusal([expert], tmp_path / "out", other)
    assert "model.layers.0.mlp.experts has LoRA factors of 1 parameters, and base" in message
    assert "has 0 that target_parameters names; it belongs to another base, or" in message
    config = AutoConfig.from_pretrained(mixtral)
    config.num_local_experts = 2
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "fewer")
    assert refusal([expert], tmp_path / "out", tmp_path / "fewer") == (
        f"expert a ({expert}): model.layers.0.mlp.experts.down_proj has LoRA factors of 8x24 and 16x8, which at rank 2 "
        "do not fit the base's 2 matrices of 16x24; it belongs to another base"
    )


def test_banks_that_the_file_holds_turned_over_merge_as_the_model_has_them(tmp_path: Path) -> None:
    """As those of Qwen3-VL, which transformers turns over when it loads them."""
    base = moe_at(tmp_path / "base", "mixtral")
    expert = adapter(base, tmp_path / "a", 1, **KINDS["both"])
    wanted = with_adapter(base, expert).merge_and_unload().state_dict()[BANK]
    whole = fused(base, tmp_path / "fused")
    weights = load_file(whole / "model.safetensors")
    turned = {name: tensor.mT.contiguous() if tensor.dim() == 3 else tensor for name, tensor in weights.items()}
    save_file(turned, whole / "model.safetensors", metadata={"format": "pt"})
    out = run([expert], tmp_path / "out", whole, output="checkpoint")
    torch.testing.assert_close(load_file(out / "model.safetensors")[BANK].mT, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", ["embed_tokens.weight", "lm_head.weight"])
@pytest.mark.parametrize("tie", [False, True])
def test_parameters_of_embedding_and_head(tie: bool, target: str, tmp_path: Path) -> None:
    base = base_at(tmp_path / "base", tied=tie)
    expert = adapter(base, tmp_path / "a", 1, target_modules=[], target_parameters=[target])
    wanted = logits(with_adapter(base, expert))
    assert_close(logits(load(run([expert], tmp_path / "out", base, output="checkpoint"))), wanted)
    loaded = load(base)
    with applied(loaded, expert):
        assert_close(logits(loaded), wanted)


def test_weights_that_are_inputs_by_outputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = tmp_path / "base"
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=40, n_positions=32, initializer_range=0.2)
    GPT2LMHeadModel(config).save_pretrained(base)
    expert = adapter(base, tmp_path / "a", 1, target_modules=[], target_parameters=["c_attn.weight"])
    out = run([expert], tmp_path / "out", base, output="checkpoint")
    assert_close(logits(load(out)), logits(with_adapter(base, expert)))


def test_a_merged_adapter_is_one_on_layers(mixtral: Path, tmp_path: Path) -> None:
    by_parameter = adapter(mixtral, tmp_path / "a", 1, target_modules=[], target_parameters=["q_proj.weight"])
    plain = adapter(mixtral, tmp_path / "b", 2, target_modules=["q_proj"])
    out = run([by_parameter, plain], tmp_path / "out", mixtral, output="adapter", rank=16)
    merged = [with_adapter(mixtral, folder).merge_and_unload().state_dict() for folder in (by_parameter, plain, out)]
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(merged[2][name], (merged[0][name] + merged[1][name]) / 2, rtol=1e-4, atol=1e-5)
