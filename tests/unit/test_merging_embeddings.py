"""LoRA on embeddings, heads and transposed weights, tied or not: what PEFT computes is what the merge computes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel, Qwen2Config

from mergetime.artifacts.apply import applied
from mergetime.artifacts.materialise import materialised
from mergetime.core.errors import UserError
from mergetime.merging.engine import merge

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TARGETS = {
    "embedding": ["q_proj", "embed_tokens"],
    "head": ["q_proj", "lm_head"],
    "both": ["embed_tokens", "lm_head"],
}


def base_at(folder: Path, *, tied: bool) -> Path:
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=40,
        initializer_range=0.2,
        tie_word_embeddings=tied,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_at(tmp_path_factory.mktemp("bases") / "base", tied=request.param)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_at(tmp_path_factory.mktemp("bases") / "tied", tied=True)


def load(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model


def adapter(base: Path, folder: Path, seed: int, **config: Any) -> Path:
    """An adapter as PEFT saves it, with all that is trained moved at random."""
    settings: dict[str, Any] = {"r": 2, "lora_alpha": 4, **config}
    model = get_peft_model(load(base), LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(folder))
    return folder


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=torch.arange(1, 33).reshape(2, 16)).logits
    return found


def with_adapter(base: Path, folder: Path) -> Any:
    return PeftModel.from_pretrained(load(base), str(folder))


def assert_close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


def run(experts: list[Path], out: Path, base: Path | None, method: str = "simple_average", **given: Any) -> Path:
    pool = [(folder.name, folder) for folder in experts]
    merge(pool, method=method, params={}, space="delta", seed=1, base=base, out=out, **given)
    return out


def refusal(experts: list[Path], out: Path, base: Path | None, **given: Any) -> str:
    """The message of a merge that must fail and must leave nothing."""
    with pytest.raises(UserError) as refused:
        run(experts, out, base, **given)
    assert not out.exists()
    return str(refused.value)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("output", ["adapter", "checkpoint"])
def test_factors_of_embedding_and_head_merge_as_the_adapter_computes(
    output: Any, targets: str, base: Path, tmp_path: Path
) -> None:
    expert = adapter(base, tmp_path / "a", 1, target_modules=TARGETS[targets])
    out = run([expert], tmp_path / "out", base, output=output)
    merged = with_adapter(base, out) if output == "adapter" else load(out)
    wanted = logits(with_adapter(base, expert))
    assert_close(logits(merged), wanted)
    assert float((logits(load(base)) - wanted).abs().max()) > 0.1


@pytest.mark.parametrize("method", ["simple_average", "ties", "tsv_merge", "knots"])
def test_experts_on_different_modules_are_averaged_or_taken_as_no_update(
    method: str, base: Path, tmp_path: Path
) -> None:
    experts = [adapter(base, tmp_path / name, seed, target_modules=TARGETS[name]) for seed, name in enumerate(TARGETS)]
    out = run(experts, tmp_path / "out", base, method, output="checkpoint")
    written = load_file(out / "model.safetensors")
    assert not written[TABLE].equal(written[HEAD])
    if method != "simple_average":
        return
    updates = []
    for expert in experts:
        model = with_adapter(base, expert).base_model.model
        layers = [model.model.embed_tokens, model.lm_head]
        updates.append(
            [layer.get_delta_weight("default") if hasattr(layer, "get_delta_weight") else 0 for layer in layers]
        )
    before = load_file(base / "model.safetensors")
    for name, parts in zip((TABLE, HEAD), zip(*updates, strict=True), strict=True):
        torch.testing.assert_close(
            written[name], before.get(name, before[TABLE]) + sum(parts) / 3, rtol=1e-5, atol=1e-6
        )


def test_an_untied_checkpoint_says_so_and_a_task_vector_is_refused(tied: Path, tmp_path: Path) -> None:
    expert = adapter(tied, tmp_path / "a", 1, target_modules=["embed_tokens"])
    out = run([expert], tmp_path / "out", tied, output="checkpoint")
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    assert load_file(out / "model.safetensors")[HEAD].equal(load_file(tied / "model.safetensors")[TABLE])
    with pytest.raises(UserError) as refused:
        run([expert], tmp_path / "delta", tied, output="delta")
    assert str(refused.value) == (
        f"expert a ({expert}): moves {TABLE} apart from what the base ties it to, which a task vector for that base "
        "cannot; use --output checkpoint, which gets a head of its own, or adapter"
    )
    plain = adapter(tied, tmp_path / "plain", 1, target_modules=["q_proj"])
    assert HEAD not in load_file(run([plain], tmp_path / "kept", tied, output="checkpoint") / "model.safetensors")


@pytest.mark.parametrize("saved", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_copies_of_a_tied_weight_are_trained_apart(saved: list[str], tied: Path, tmp_path: Path) -> None:
    expert = adapter(tied, tmp_path / "a", 1, target_modules=["q_proj"], modules_to_save=saved)
    out = run([expert], tmp_path / "out", tied, output="checkpoint")
    assert_close(logits(load(out)), logits(with_adapter(tied, expert)))


def test_a_tied_embedding_that_was_saved_unasked_moves_both(tied: Path, tmp_path: Path) -> None:
    model = load(tied)
    with torch.no_grad():
        model.get_parameter(TABLE).add_(0.1)
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    peft.save_pretrained(str(tmp_path / "a"), save_embedding_layers=True)
    out = run([tmp_path / "a"], tmp_path / "out", tied, output="checkpoint")
    assert HEAD not in load_file(out / "model.safetensors")
    assert_close(logits(load(out)), logits(peft))
    # A file may hold only one name of the tied weight.
    file = tmp_path / "a" / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({key: tensor for key, tensor in weights.items() if not key.endswith(TABLE)}, file)
    assert_close(logits(load(run([tmp_path / "a"], tmp_path / "head", tied, output="checkpoint"))), logits(peft))
    save_file(weights, file)
    other = adapter(tied, tmp_path / "b", 1, target_modules=["lm_head"])
    both = load_file(run([tmp_path / "a", other], tmp_path / "both", tied, output="checkpoint") / "model.safetensors")
    before = load_file(tied / "model.safetensors")[TABLE]
    head = with_adapter(tied, other).base_model.model.lm_head
    torch.testing.assert_close(both[TABLE], before + 0.05, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(both[HEAD], before + 0.05 + head.get_delta_weight("default") / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("targets", TARGETS)
def test_a_loaded_base_has_a_head_of_its_own_while_such_an_adapter_is_on_it(
    targets: str, base: Path, tmp_path: Path
) -> None:
    expert = adapter(base, tmp_path / "a", 1, target_modules=TARGETS[targets])
    model = load(base)
    names, before, wanted = set(model.state_dict()), logits(model), logits(with_adapter(base, expert))
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    with applied(model, expert):
        assert_close(logits(model), wanted)
        with materialised(model, base) as folder:
            assert_close(logits(load(folder)), wanted)
    assert logits(model).equal(before)
    assert set(model.state_dict()) == names
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("with_base", [True, False])
def test_lora_on_transposed_weights_merges_as_peft_merges_it(with_base: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 40}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(tmp_path / "base")
    base = tmp_path / "base"
    targets = ["c_proj", "c_attn"]
    experts = [adapter(base, tmp_path / name, seed, target_modules=targets) for seed, name in enumerate("ab")]
    out = run(experts, tmp_path / "out", base if with_base else None)
    model = with_adapter(base, experts[0])
    model.load_adapter(str(experts[1]), "b")
    model.add_weighted_adapter(["default", "b"], [0.5, 0.5], "mean", combination_type="cat")
    model.set_adapter("mean")
    assert_close(logits(with_adapter(base, out)), logits(model))
    assert_close(logits(load(run(experts, tmp_path / "whole", base, output="checkpoint"))), logits(model))


def test_layouts_that_differ_are_refused_where_no_base_tells(tmp_path: Path) -> None:
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=40)).save_pretrained(tmp_path / "base")
    experts = [adapter(tmp_path / "base", tmp_path / name, 1, target_modules=["attn.c_proj"]) for name in "ab"]
    config = experts[1] / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"fan_in_fan_out": False}))
    with pytest.raises(UserError, match=r"fan_in_fan_out is not as in expert a \(.*\), so transformer\.h\.0\.attn"):
        run(experts, tmp_path / "out", None)
    run(experts, tmp_path / "out", tmp_path / "base")


@pytest.mark.parametrize("method", ["simple_average", "ties"])
def test_factors_of_an_embedding_merge_in_adapter_space_as_peft_merges_them(
    method: str, base: Path, tmp_path: Path
) -> None:
    experts = [adapter(base, tmp_path / name, seed, target_modules=TARGETS["both"]) for seed, name in enumerate("ab")]
    pool = [(folder.name, folder) for folder in experts]
    params = {"density": 0.5} if method == "ties" else {}
    merge(pool, method=method, params=params, space="adapter", seed=1, base=None, out=tmp_path / "out")
    model = with_adapter(base, experts[0])
    model.load_adapter(str(experts[1]), "b")
    how: dict[str, Any] = {"combination_type": "linear"}
    weight = 0.5
    if method == "ties":
        how, weight = {"combination_type": "ties", "density": 0.5}, 1.0
    model.add_weighted_adapter(["default", "b"], [weight, weight], "merged", **how)
    model.set_adapter("merged")
    assert_close(logits(with_adapter(base, tmp_path / "out")), logits(model))


def test_an_embedding_of_unknown_name_is_refused_without_a_base(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(8, 4))
    get_peft_model(model, LoraConfig(r=2, target_modules=["0"])).save_pretrained(str(tmp_path / "a"))
    with pytest.raises(UserError, match=r"0 is an embedding, and .*without_base\.yaml takes it for a linear layer"):
        run([tmp_path / "a"], tmp_path / "out", None)
