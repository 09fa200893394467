"""DoRA, lora_bias and trained biases: exact updates of the base, as PEFT computes them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergetime.artifacts.apply import applied
from mergetime.core.errors import UserError
from mergetime.merging.engine import merge
from tests.unit.test_merging_embeddings import adapter, assert_close, base_at, load, logits, refusal, run, with_adapter

Q_PROJ = "model.layers.0.self_attn.q_proj"
KINDS: dict[str, dict[str, Any]] = {
    "dora": {"target_modules": ["q_proj", "down_proj"], "use_dora": True, "use_rslora": True},
    "dora_on_embedding_and_head": {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True},
    "lora_bias": {"target_modules": ["q_proj", "v_proj"], "lora_bias": True},
    "bias_all": {"target_modules": ["q_proj"], "bias": "all"},
    "bias_lora_only": {"target_modules": ["q_proj", "o_proj"], "bias": "lora_only"},
    "all_biases": {"target_modules": ["q_proj"], "bias": "all", "lora_bias": True},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_at(tmp_path_factory.mktemp("dora") / "base", tied=False)


@pytest.mark.parametrize("kind", KINDS)
def test_the_merge_is_what_peft_merges(kind: str, base: Path, tmp_path: Path) -> None:
    expert = adapter(base, tmp_path / "a", 1, **KINDS[kind])
    model = with_adapter(base, expert)
    wanted = logits(model)
    assert float((logits(load(base)) - wanted).abs().max()) > 0.1
    out = run([expert], tmp_path / "out", base, output="checkpoint")
    assert_close(logits(load(out)), wanted)
    written = load_file(out / "model.safetensors")
    for name, tensor in model.merge_and_unload().state_dict().items():
        torch.testing.assert_close(written[name], tensor, rtol=1e-5, atol=1e-6)
    loaded = load(base)
    for folder in (expert, run([expert], tmp_path / "delta", base)):
        with applied(loaded, folder):
            assert_close(logits(loaded), wanted)


def test_dora_on_an_embedding_of_a_tied_base_moves_it_apart(tmp_path: Path) -> None:
    tied = base_at(tmp_path / "base", tied=True)
    expert = adapter(tied, tmp_path / "a", 1, target_modules=["embed_tokens"], use_dora=True)
    assert_close(
        logits(load(run([expert], tmp_path / "out", tied, output="checkpoint"))), logits(with_adapter(tied, expert))
    )


def test_experts_of_all_kinds_are_averaged(base: Path, tmp_path: Path) -> None:
    experts = [adapter(base, tmp_path / name, seed, **KINDS[name]) for seed, name in enumerate(KINDS)]
    experts.append(adapter(base, tmp_path / "plain", 9, target_modules=["q_proj"]))
    run(experts, tmp_path / "out", base, output="checkpoint")
    states = [with_adapter(base, expert).merge_and_unload().state_dict() for expert in experts]
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        mean = torch.stack([state[name] for state in states]).mean(dim=0)
        torch.testing.assert_close(tensor, mean, rtol=1e-5, atol=1e-6)
    for method in ("ties", "tsv_merge"):
        run(experts, tmp_path / method, base, method, output="delta")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("dora", "scales model.layers.0.mlp.down_proj.weight by DoRA"),
        ("lora_bias", f"adds lora_bias to {Q_PROJ}.bias"),
        ("bias_lora_only", f"trained {Q_PROJ}.bias whole"),
    ],
)
def test_what_factors_do_not_hold_is_refused_with_the_mend(kind: str, words: str, base: Path, tmp_path: Path) -> None:
    expert = adapter(base, tmp_path / "a", 1, **KINDS[kind])
    given = f"expert a ({expert}): {words}, which "
    message = refusal([expert], tmp_path / "out", base, output="adapter")
    assert message.startswith(f"{given}a merged adapter does not hold; use --output delta or checkpoint")
    assert message.endswith("or --rank for the best adapter of that rank") == (kind == "dora")
    with pytest.raises(UserError, match="which adapter space cannot merge; use --space delta"):
        merge([("a", expert)], method="ties", params={}, space="adapter", seed=1, base=base, out=tmp_path / "out")
    without = refusal([expert], tmp_path / "out", None)
    if kind == "bias_lora_only":
        assert "q_proj.base_layer.bias is a whole tensor, which may be the base's or trained" in without
    else:
        assert without == f"{given}is merged as an update of the base; give --base its folder"


def test_dora_fits_into_an_adapter_of_full_rank(base: Path, tmp_path: Path) -> None:
    expert = adapter(base, tmp_path / "a", 1, **KINDS["dora"])
    out = run([expert], tmp_path / "out", base, output="adapter", rank=16)
    assert json.loads((out / "adapter_config.json").read_text())["use_dora"] is False
    assert_close(logits(with_adapter(base, out)), logits(with_adapter(base, expert)))


def test_a_bias_that_the_base_lacks_is_refused(base: Path, tmp_path: Path) -> None:
    expert = adapter(base, tmp_path / "a", 1, target_modules=["o_proj"], lora_bias=True)
    assert refusal([expert], tmp_path / "out", base).endswith(
        f"adds lora_bias to model.layers.0.self_attn.o_proj.bias, which base {base} has not, so only PEFT can compute "
        "with it; train without lora_bias"
    )


@pytest.mark.parametrize(("kind", "key"), [("dora", "magnitude_vector"), ("lora_bias", "B.bias")])
def test_a_config_and_a_file_that_disagree_are_refused(kind: str, key: str, base: Path, tmp_path: Path) -> None:
    expert = adapter(base, tmp_path / "a", 1, **KINDS[kind])
    file, config = expert / "adapter_model.safetensors", expert / "adapter_config.json"
    weights, settings = load_file(file), json.loads(config.read_text())
    setting = "use_dora" if kind == "dora" else "lora_bias"
    config.write_text(json.dumps(settings | {setting: False}))
    assert f"{setting} is False in adapter_config.json, and the file has a" in refusal([expert], tmp_path / "o", base)
    config.write_text(json.dumps(settings))
    stray = f"base_model.model.{Q_PROJ}.lora_{key}"
    for changed, words in (
        ({name: tensor for name, tensor in weights.items() if name != stray}, f"{setting} is True"),
        (weights | {stray: torch.ones(3)}, "has not one number for each of 16 outputs"),
        (weights | {stray.replace("q_proj", "o_proj"): torch.ones(16)}, "o_proj, which has no LoRA factors"),
    ):
        save_file(changed, file, metadata={"format": "pt"})
        assert words in refusal([expert], tmp_path / "o", base)
    save_file(weights | {stray: torch.full((16,), torch.nan)}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{stray} holds NaN or infinite values"):
        run([expert], tmp_path / "o", base)
