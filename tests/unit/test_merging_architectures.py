"""Merging full checkpoints and adapters of each architecture: what transformers and PEFT load is what torch computes."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mergetime.architectures.architecture import Architecture
from mergetime.architectures.files import architecture_of
from mergetime.merging.engine import merge

State = dict[str, torch.Tensor]
QWEN3_5 = architecture_of({"model_type": "qwen3_5"})
NAMES = ("code", "math", "safety")
VOCABULARY = 48
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
HYBRID = {
    **SIZES,
    **HEADS,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "tie_word_embeddings": True,
}
VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 2,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 16,
    "num_position_embeddings": 16,
}
T5 = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
# Name of the model's class, of its config's, and the config's settings.
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen3_5": ("Qwen3_5ForCausalLM", "Qwen3_5TextConfig", HYBRID),
    "qwen3_5_multimodal": (
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5Config",
        {"text_config": HYBRID, "vision_config": VISION, "tie_word_embeddings": True},
    ),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**SIZES, **HEADS, "tie_word_embeddings": False}),
    "qwen3_tied": ("Qwen3ForCausalLM", "Qwen3Config", {**SIZES, **HEADS, "tie_word_embeddings": True}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**SIZES, **HEADS}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**SIZES, **HEADS}),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5),
}
MTP = {
    "mtp.fc.weight": (16, 32),
    "mtp.layers.0.mlp.up_proj.weight": (24, 16),
    "mtp.norm.weight": (16,),
    "mtp.pre_fc_norm_hidden.weight": (16,),
}


def model_class(architecture: str) -> Any:
    return getattr(transformers, ARCHITECTURES[architecture][0])


def noise(state: State, seed: int, size: float) -> State:
    """The state with random numbers added to every floating-point tensor."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + size * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        for name, tensor in state.items()
    }


def state_of(folder: Path) -> State:
    return load_file(folder / "model.safetensors")


def write_state(folder: Path, state: State) -> None:
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def save_base(architecture: str, folder: Path, extra: State | None = None) -> Path:
    """A random model with a tokenizer, saved by transformers; no tensor is left at its initial constant."""
    name, config, settings = ARCHITECTURES[architecture]
    torch.manual_seed(7)
    model: PreTrainedModel = getattr(transformers, name)(getattr(transformers, config)(**settings))
    model.save_pretrained(folder)
    words = WordLevel({f"word{place}": place for place in range(VOCABULARY - 1)} | {"<unk>": VOCABULARY - 1}, "<unk>")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    write_state(folder, noise(state_of(folder), 8, 0.02) | (extra or {}))
    return folder


def save_expert(base: Path, folder: Path, seed: int, state: State | None = None) -> Path:
    """A full fine-tune: every tensor of the base moved a little."""
    folder.mkdir()
    for name in ("config.json", "generation_config.json"):
        (folder / name).write_bytes((base / name).read_bytes())
    write_state(folder, noise(state or state_of(base), seed, 0.01))
    return folder


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, list[tuple[str, Path]]]]:
    """Base and three full experts of an architecture, made once."""
    made: dict[str, tuple[Path, list[tuple[str, Path]]]] = {}

    def get(architecture: str) -> tuple[Path, list[tuple[str, Path]]]:
        if architecture not in made:
            root = tmp_path_factory.mktemp(architecture)
            base = save_base(architecture, root / "base")
            made[architecture] = base, [(name, save_expert(base, root / name, seed)) for seed, name in enumerate(NAMES)]
        return made[architecture]

    return get


Pools = Callable[[str], tuple[Path, list[tuple[str, Path]]]]


def known_of(folder: Path) -> Architecture:
    """The architecture of a checkpoint."""
    return architecture_of(json.loads((folder / "config.json").read_text()))


def linear_weights(model: nn.Module) -> set[str]:
    """Weights of the text model's linear layers as the modules' classes say it, by their names in the state dict."""
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith("lm_head") and ".visual." not in name
    }


def mean(updates: torch.Tensor) -> torch.Tensor:
    return updates.mean(dim=0)


def trimmed_sign_election(updates: torch.Tensor) -> torch.Tensor:
    """TIES at density 0.5."""
    flat = updates.flatten(1)
    kept = torch.zeros_like(flat)
    for row, own in zip(flat, kept, strict=True):
        places = row.abs().topk(max(1, len(row) // 2)).indices
        own[places] = row[places]
    agree = (kept.sign() == kept.sum(dim=0).sign()) & (kept != 0)
    return ((kept * agree).sum(dim=0) / agree.sum(dim=0).clamp(min=1)).view(updates.shape[1:])


def orthogonal_directions(updates: torch.Tensor) -> torch.Tensor:
    """TSV-Merge of matrices: the strongest third of each expert's singular triples, decorrelated."""
    kept = min(updates.shape[1:]) // len(updates) or 1
    u, s, vh = torch.linalg.svd(updates.double(), full_matrices=False)
    left, right = torch.cat(list(u[:, :, :kept]), dim=1), torch.cat(list(vh[:, :kept]))
    (p, _, qh), (r, _, th) = (torch.linalg.svd(side, full_matrices=False) for side in (left, right))
    return (p @ qh @ torch.diag(s[:, :kept].flatten()) @ r @ th).float()


def stock(updates: torch.Tensor) -> torch.Tensor:
    """Model Stock: Equation 4 with the mean cosine over three pairs."""
    flat = updates.flatten(1).double()
    cosine = sum(torch.cosine_similarity(flat[a], flat[b], dim=0) for a, b in ((0, 1), (0, 2), (1, 2))) / 3
    return (3 * cosine / (1 + 2 * cosine) * flat.mean(dim=0)).float().view(updates.shape[1:])


EXPECTED = {
    "simple_average": (mean, mean),
    "ties": (trimmed_sign_election, trimmed_sign_election),
    "tsv_merge": (orthogonal_directions, mean),
    "model_stock": (stock, stock),
}


def expected_state(base: State, experts: list[State], method: str, linear: set[str]) -> State:
    """Base + update in plain torch, fp32: one function for matrices of linear layers, one for all else."""
    for_linear, otherwise = EXPECTED[method]
    merged = {}
    for name, weights in base.items():
        updates = torch.stack([expert[name] - weights for expert in experts])
        merged[name] = weights + (for_linear if name in linear else otherwise)(updates)
    return merged


def load(architecture: str, folder: Path, **given: Any) -> Any:
    """The model as transformers loads it, which must find every tensor it has and no other."""
    model, info = model_class(architecture).from_pretrained(folder, output_loading_info=True, **given)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model.eval()


def assert_states_equal(found: State, wanted: State, tolerance: float = 1e-6) -> None:
    assert set(wanted) <= set(found)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=tolerance, msg=partial("{}: {}".format, name))


def run(experts: list[tuple[str, Path]], base: Path, out: Path, method: str, **given: Any) -> dict[str, Any]:
    settings = {"params": {}, "space": "delta", "seed": 1, "output": "checkpoint", **given}
    return merge(experts, method=method, base=base, out=out, **settings)


@pytest.mark.parametrize("method", list(EXPECTED))
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_full_experts_merge_into_what_plain_torch_computes(
    pools: Pools, tmp_path: Path, architecture: str, method: str
) -> None:
    base, experts = pools(architecture)
    summary = run(experts, base, tmp_path / "out", method)
    model = load(architecture, tmp_path / "out")
    before = state_of(base)
    wanted = expected_state(before, [state_of(folder) for _, folder in experts], method, linear_weights(model))
    assert state_of(tmp_path / "out").keys() == before.keys()
    assert_states_equal(model.state_dict(), wanted)
    assert summary["entries"] == sum(tensor.numel() for tensor in before.values())
    moved = torch.cat([(wanted[name] - before[name]).flatten() for name in before])
    assert summary["merged_norm"] == pytest.approx(float(moved.norm()), rel=1e-4)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_linear_is_what_transformers_has_as_linear_layers(pools: Pools, architecture: str) -> None:
    base, _ = pools(architecture)
    known = known_of(base)
    roles = {name: known.role(known.canonical(name), tensor.shape) for name, tensor in state_of(base).items()}
    linear = linear_weights(load(architecture, base))
    assert {name for name, role in roles.items() if role == "linear"} == linear
    assert linear


LINEAR, VECTOR, NORM, TOWER = "linear", "vector", "norm", "vision_tower"
ROLES: dict[str, dict[str, str]] = {
    "qwen3_5": {
        "model.embed_tokens.weight": "embedding",
        "model.layers.0.linear_attn.A_log": VECTOR,
        "model.layers.0.linear_attn.dt_bias": VECTOR,
        "model.layers.0.linear_attn.conv1d.weight": "convolution",
        "model.layers.0.linear_attn.norm.weight": NORM,
        "model.layers.0.linear_attn.in_proj_a.weight": LINEAR,
        "model.layers.0.linear_attn.in_proj_qkv.weight": LINEAR,
        "model.layers.0.linear_attn.out_proj.weight": LINEAR,
        "model.layers.1.self_attn.q_norm.weight": NORM,
        "model.layers.1.self_attn.q_proj.weight": LINEAR,
        "model.norm.weight": NORM,
    },
    "qwen3_5_multimodal": {
        "model.language_model.embed_tokens.weight": "embedding",
        "model.language_model.layers.0.linear_attn.A_log": VECTOR,
        "model.language_model.layers.0.linear_attn.conv1d.weight": "convolution",
        "model.language_model.layers.0.mlp.up_proj.weight": LINEAR,
        "model.visual.blocks.0.attn.qkv.weight": TOWER,
        "model.visual.blocks.0.attn.qkv.bias": TOWER,
        "model.visual.blocks.0.norm1.weight": TOWER,
        "model.visual.merger.linear_fc1.weight": TOWER,
        "model.visual.patch_embed.proj.weight": TOWER,
        "model.visual.pos_embed.weight": TOWER,
    },
    "qwen3": {
        "lm_head.weight": "head",
        "model.embed_tokens.weight": "embedding",
        "model.layers.0.self_attn.k_norm.weight": NORM,
        "model.layers.0.self_attn.k_proj.weight": LINEAR,
    },
    "qwen3_tied": {"model.embed_tokens.weight": "embedding"},
    "llama": {
        "lm_head.weight": "head",
        "model.layers.0.input_layernorm.weight": NORM,
        "model.layers.0.mlp.down_proj.weight": LINEAR,
    },
    "gemma2": {
        "model.embed_tokens.weight": "embedding",
        "model.layers.0.pre_feedforward_layernorm.weight": NORM,
        "model.layers.0.self_attn.o_proj.weight": LINEAR,
    },
    "t5": {
        "shared.weight": "embedding",
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "position",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "position",
        "decoder.block.0.layer.1.EncDecAttention.q.weight": LINEAR,
        "encoder.block.0.layer.1.DenseReluDense.wi.weight": LINEAR,
        "encoder.block.0.layer.1.layer_norm.weight": NORM,
        "decoder.final_layer_norm.weight": NORM,
    },
}


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_roles_of_the_telling_tensors(pools: Pools, architecture: str) -> None:
    base, _ = pools(architecture)
    state, known = state_of(base), known_of(base)
    found = {name: known.role(known.canonical(name), state[name].shape) for name in ROLES[architecture]}
    assert found == ROLES[architecture]


def test_roles_of_mtp_tensors() -> None:
    assert {QWEN3_5.role(QWEN3_5.canonical(name), shape) for name, shape in MTP.items()} == {"mtp"}
    assert QWEN3_5.role("model.mtp.layers.0.self_attn.q_proj.weight", (16, 16)) == "mtp"
    assert QWEN3_5.role("model.layers.0.mlp.up_proj.weight", (24, 16)) == LINEAR


@pytest.mark.parametrize("method", ["tsv_merge", "iso_c", "subspace_boosting", "subspace_boosting_ties"])
@pytest.mark.parametrize("architecture", ["qwen3_5_multimodal", "t5"])
def test_spectral_methods_treat_only_linear_matrices_by_their_spectrum(
    pools: Pools, tmp_path: Path, architecture: str, method: str
) -> None:
    base, experts = pools(architecture)
    others: dict[str, tuple[str, dict[str, Any]]] = {
        "tsv_merge": ("simple_average", {}),
        "iso_c": ("simple_average", {}),
        "subspace_boosting": ("task_arithmetic", {}),
        "subspace_boosting_ties": ("ties", {}),
    }
    plain = others[method]
    run(experts, base, tmp_path / "spectral", method)
    run(experts, base, tmp_path / "plain", plain[0], params=plain[1])
    spectral, otherwise = state_of(tmp_path / "spectral"), state_of(tmp_path / "plain")
    linear = linear_weights(load(architecture, base))
    for name, tensor in spectral.items():
        assert torch.allclose(tensor, otherwise[name], rtol=0, atol=1e-7) == (name not in linear), name


def with_mtp(root: Path) -> Path:
    """A multimodal base whose file also has tensors for multi-token prediction, which transformers does not load."""
    extra = noise({name: torch.zeros(shape) for name, shape in MTP.items()}, 9, 0.1)
    return save_base("qwen3_5_multimodal", root / "base", extra)


@pytest.mark.parametrize("method", ["simple_average", "ties", "tsv_merge", "model_stock"])
def test_mtp_tensors_are_merged_by_weights_alone(tmp_path: Path, method: str) -> None:
    base = with_mtp(tmp_path)
    experts = [(name, save_expert(base, tmp_path / name, seed)) for seed, name in enumerate(NAMES)]
    run(experts, base, tmp_path / "out", method)
    model = load("qwen3_5_multimodal", tmp_path / "out")
    states = [state_of(folder) for _, folder in experts]
    wanted = expected_state(state_of(base), states, method, linear_weights(model))
    assert_states_equal(state_of(tmp_path / "out"), wanted)
    assert set(MTP) <= set(wanted)


@pytest.mark.parametrize("method", ["simple_average", "ties", "tsv_merge", "model_stock"])
@pytest.mark.parametrize("mixed", [False, True], ids=["all_text_only", "one_multimodal"])
def test_text_only_experts_merge_onto_a_multimodal_base(tmp_path: Path, method: str, mixed: bool) -> None:
    base = with_mtp(tmp_path)
    before = state_of(base)
    nested = {name: tensor for name, tensor in before.items() if "visual" not in name and not name.startswith("mtp")}
    text = {name.replace("model.language_model.", "model."): tensor for name, tensor in nested.items()}
    assert text.keys().isdisjoint(nested)
    experts = [(name, save_expert(base, tmp_path / name, seed, text)) for seed, name in enumerate(NAMES)]
    model_class("qwen3_5").config_class(**HYBRID).save_pretrained(tmp_path / "text")
    for _, folder in experts:
        (folder / "config.json").write_bytes((tmp_path / "text" / "config.json").read_bytes())
    back = {name.replace("model.language_model.", "model."): name for name in nested}
    states = [before | {back[name]: tensor for name, tensor in state_of(folder).items()} for _, folder in experts]
    if mixed:
        experts[1] = ("math", save_expert(base, tmp_path / "multimodal", 5))
        states[1] = state_of(experts[1][1])
    run(experts, base, tmp_path / "out", method)
    found = state_of(tmp_path / "out")
    model = load("qwen3_5_multimodal", tmp_path / "out")
    if mixed:
        wanted = expected_state(before, states, method, linear_weights(model))
        if method == "model_stock":  # Two experts that stay where the base is have no angle: mergekit's floor on norms.
            wanted = {name: tensor for name, tensor in wanted.items() if name in nested}
        assert_states_equal(found, wanted)
        return
    kept = before.keys() - nested.keys()
    assert len(kept) > len(MTP)
    for name in kept:
        assert torch.equal(found[name], before[name]), name
    changed = {name: tensor for name, tensor in before.items() if name in nested}
    assert_states_equal(found, expected_state(changed, states, method, linear_weights(model)))


def test_a_16_bit_multimodal_base_keeps_its_vision_bit_for_bit(tmp_path: Path) -> None:
    base = with_mtp(tmp_path)
    before = {name: tensor.bfloat16() for name, tensor in state_of(base).items()}
    write_state(base, before)
    text = {
        name.replace("model.language_model.", "model."): tensor for name, tensor in before.items() if "language" in name
    }
    expert = save_expert(base, tmp_path / "math", 1, text)
    run([("math", expert)], base, tmp_path / "out", "simple_average", dtype="bfloat16")
    found = state_of(tmp_path / "out")
    for name, tensor in before.items():
        assert found[name].dtype == torch.bfloat16
        if "language" in name:
            assert torch.equal(found[name], state_of(expert)[name.replace("model.language_model.", "model.")]), name
        else:
            assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("architecture", ["qwen3_5_multimodal", "t5"])
def test_tokenizer_and_configs_come_along_and_the_dtype_is_that_of_the_weights(
    pools: Pools, tmp_path: Path, architecture: str
) -> None:
    base, experts = pools(architecture)
    run(experts, base, tmp_path / "out", "simple_average", dtype="bfloat16")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in base.iterdir())
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    assert tokenizer("word3 word5")["input_ids"] == [3, 5]
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (base, tmp_path / "out"))
    assert before["dtype"] == "float32"
    assert after["dtype"] == "bfloat16"
    assert {key: value for key, value in after.items() if key not in ("dtype", "mergetime_version")} == {
        key: value for key, value in before.items() if key != "dtype"
    }
    model = load(architecture, tmp_path / "out", dtype="auto")
    assert {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()} == {torch.bfloat16}


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_dtype_in_a_section_of_the_config_is_updated(pools: Pools, tmp_path: Path, key: str) -> None:
    source, _ = pools("qwen3_5_multimodal")
    base = tmp_path / "base"
    base.mkdir()
    for path in source.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    config = json.loads((base / "config.json").read_text())
    del config["dtype"]
    for section in ("text_config", "vision_config"):
        config[section][key] = "bfloat16"
    (base / "config.json").write_text(json.dumps(config))
    write_state(base, {name: tensor.bfloat16() for name, tensor in state_of(base).items()})
    expert = save_expert(base, tmp_path / "math", 1)
    run([("math", expert)], base, tmp_path / "out", "simple_average")
    after = json.loads((tmp_path / "out" / "config.json").read_text())
    assert after["dtype"] == "float32"
    assert "bfloat16" not in json.dumps(after)
    model = load("qwen3_5_multimodal", tmp_path / "out", dtype="auto")
    assert {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()} == {torch.float32}


def test_a_t5_with_a_head_of_its_own_merges_though_transformers_writes_that_it_is_tied(tmp_path: Path) -> None:
    """Transformers 5 says tie_word_embeddings: true in every T5 config it writes; the head in the file is what counts."""
    base = save_base("t5", tmp_path / "base")
    head = torch.randn(VOCABULARY, 16, generator=torch.Generator().manual_seed(3))
    write_state(base, state_of(base) | {"lm_head.weight": head})
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    model = load("t5", base)
    assert torch.equal(model.lm_head.weight, head)
    experts = []
    for seed, name in enumerate(NAMES):
        model.load_state_dict(noise(model.state_dict(), seed, 0.01), strict=False)
        model.save_pretrained(tmp_path / name)
        experts.append((name, tmp_path / name))
    assert json.loads((tmp_path / "math" / "config.json").read_text())["tie_word_embeddings"] is True
    run(experts, base, tmp_path / "out", "simple_average")
    states = [state_of(folder) for _, folder in experts]
    assert "lm_head.weight" in states[0]
    wanted = expected_state(state_of(base), states, "simple_average", set())
    assert_states_equal(load("t5", tmp_path / "out").state_dict(), wanted)


@pytest.mark.parametrize("architecture", ["qwen3_tied", "gemma2", "t5"])
def test_a_head_that_repeats_the_embedding_changes_nothing(pools: Pools, tmp_path: Path, architecture: str) -> None:
    base, experts = pools(architecture)
    table = "shared.weight" if architecture == "t5" else "model.embed_tokens.weight"
    folder = save_expert(base, tmp_path / "math", 3)
    repeated = tmp_path / "again"
    save_expert(base, repeated, 3)
    write_state(repeated, state_of(repeated) | {"lm_head.weight": state_of(repeated)[table].clone()})
    run([experts[0], ("math", folder)], base, tmp_path / "one", "ties")
    run([experts[0], ("math", repeated)], base, tmp_path / "two", "ties")
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "two" / "model.safetensors"
    ).read_bytes()


def save_adapter(architecture: str, base: Path, folder: Path, seed: int) -> Path:
    """An adapter of PEFT on all linear layers, with random factors."""
    config = LoraConfig(r=3, lora_alpha=3 + 2 * seed, target_modules="all-linear")
    model = get_peft_model(load(architecture, base), config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def adapters(
    pools: Pools, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, list[tuple[str, Path]]]]:
    """Base and three adapters of an architecture, made once."""
    made: dict[str, list[tuple[str, Path]]] = {}

    def get(architecture: str) -> tuple[Path, list[tuple[str, Path]]]:
        base, _ = pools(architecture)
        if architecture not in made:
            root = tmp_path_factory.mktemp("adapters")
            folders = [(name, root / name) for name in NAMES]
            made[architecture] = [
                (name, save_adapter(architecture, base, folder, seed)) for seed, (name, folder) in enumerate(folders)
            ]
        return base, made[architecture]

    return get


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_one_adapter_becomes_the_checkpoint_that_peft_merges(
    adapters: Pools, tmp_path: Path, architecture: str
) -> None:
    base, experts = adapters(architecture)
    wanted = PeftModel.from_pretrained(load(architecture, base), experts[1][1]).merge_and_unload().state_dict()
    run(experts[1:2], base, tmp_path / "out", "simple_average")
    assert_states_equal(load(architecture, tmp_path / "out").state_dict(), wanted)
    before = state_of(base)
    changed = {name for name in before if not torch.equal(wanted[name], before[name])}
    assert changed >= linear_weights(load(architecture, base))


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_three_adapters_become_the_weighted_sum_that_peft_makes(
    adapters: Pools, tmp_path: Path, architecture: str
) -> None:
    base, experts = adapters(architecture)
    theirs = PeftModel.from_pretrained(load(architecture, base), experts[0][1], adapter_name=NAMES[0])
    for name, folder in experts[1:]:
        theirs.load_adapter(folder, name)
    weights = dict(zip(NAMES, (0.5, 0.3, -0.2), strict=True))
    theirs.add_weighted_adapter(list(NAMES), list(weights.values()), "all", combination_type="cat")
    theirs.set_adapter("all")
    wanted = theirs.merge_and_unload(adapter_names=["all"]).state_dict()
    params = {"weights": weights}
    run(experts, base, tmp_path / "out", "task_arithmetic", params=params)
    assert_states_equal(load(architecture, tmp_path / "out").state_dict(), wanted)
    run(experts, base, tmp_path / "adapter", "task_arithmetic", params=params, output="adapter")
    ours = PeftModel.from_pretrained(load(architecture, base), tmp_path / "adapter").merge_and_unload().state_dict()
    assert_states_equal(ours, wanted)


def test_adapters_of_the_text_model_merge_onto_the_multimodal_base(tmp_path: Path) -> None:
    base = with_mtp(tmp_path)
    before = state_of(base)
    text = save_base("qwen3_5", tmp_path / "text")
    canonical = QWEN3_5.canonical
    nested = {canonical(name): name for name in before if "language" in name}
    write_state(text, {name: before[nested[name]] for name in state_of(text)})
    experts = [(name, save_adapter("qwen3_5", text, tmp_path / name, seed)) for seed, name in enumerate(NAMES)]
    run(experts, base, tmp_path / "out", "task_arithmetic")
    run(experts, text, tmp_path / "text_out", "task_arithmetic")
    found, wanted = state_of(tmp_path / "out"), state_of(tmp_path / "text_out")
    load("qwen3_5_multimodal", tmp_path / "out")
    assert found.keys() == before.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, wanted[canonical(name)] if "language" in name else before[name]), name
    updated = {nested[name] for name in linear_weights(load("qwen3_5", text))}
    assert {name for name in before if not torch.equal(found[name], before[name])} == updated


@pytest.mark.parametrize("method", ["ties", "tsv_merge", "model_stock", "knots"])
@pytest.mark.parametrize("architecture", ["qwen3_5", "t5"])
def test_adapters_merge_as_their_dense_updates_do(
    adapters: Pools, tmp_path: Path, architecture: str, method: str
) -> None:
    base, experts = adapters(architecture)
    run(experts, base, tmp_path / "out", method)
    model = load(architecture, tmp_path / "out")
    run(experts, base, tmp_path / "delta", method, output="delta")
    update = load_file(tmp_path / "delta" / "task_vector.safetensors")
    before = state_of(base)
    assert_states_equal(model.state_dict(), before | {name: before[name] + own for name, own in update.items()})
    if method in ("ties", "model_stock"):
        full = [
            PeftModel.from_pretrained(load(architecture, base), folder).merge_and_unload().state_dict()
            for _, folder in experts
        ]
        kept = {name: tensor for name, tensor in before.items() if name in update}
        wanted = expected_state(kept, full, method, set())
        assert_states_equal(model.state_dict(), wanted, tolerance=1e-5)
