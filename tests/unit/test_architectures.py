"""Architecture files against the models that transformers builds: every tensor has the role that its module gives it."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors import safe_open
from torch import nn
from transformers.pytorch_utils import Conv1D

from mergetime.architectures.architecture import expression
from mergetime.architectures.files import architecture_at, architecture_of, files, without_base
from mergetime.core.errors import UserError

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
HEADS = {**GROUPED, "head_dim": 8}
ENCODER = {**SIZES, "max_position_embeddings": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
HYBRID = {
    **HEADS,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_TOWER = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "out_hidden_size": 32,
    "patch_size": 14,
}
ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}
TOKENS = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
CLIP = {"text_config": ENCODER, "vision_config": TOWER}
# The model's class, its config's class, and the config's settings; nested ones may be configs themselves.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**GROUPED, "attention_bias": True, "mlp_bias": True}),
    "llama_classifier": ("LlamaForSequenceClassification", "LlamaConfig", GROUPED),
    "mistral": ("MistralForCausalLM", "MistralConfig", HEADS),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**GROUPED, "num_local_experts": 4}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GROUPED),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**HEADS, "attention_bias": True}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**HEADS, **EXPERTS, "mlp_only_layers": [1]}),
    "qwen3_5": ("Qwen3_5ForCausalLM", "Qwen3_5TextConfig", HYBRID),
    "qwen3_5_multimodal": (
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5Config",
        {"text_config": HYBRID, "vision_config": QWEN_TOWER, **TOKENS},
    ),
    "qwen3_5_moe": (
        "Qwen3_5MoeForConditionalGeneration",
        "Qwen3_5MoeConfig",
        {
            "text_config": {**HYBRID, **EXPERTS, "shared_expert_intermediate_size": 16},
            "vision_config": QWEN_TOWER,
            **TOKENS,
        },
    ),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", HEADS),
    "gemma3_text": ("Gemma3ForCausalLM", "Gemma3TextConfig", HEADS),
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        {
            "text_config": HEADS,
            "vision_config": TOWER,
            "mm_tokens_per_image": 4,
            "image_token_index": 60,
            "boi_token_index": 61,
            "eoi_token_index": 62,
        },
    ),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {**GROUPED, "pad_token_id": 0}),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", GROUPED),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "gpt2_bare": ("GPT2Model", "GPT2Config", GPT2),
    "gpt2_classifier": ("GPT2ForSequenceClassification", "GPT2Config", GPT2),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", ENCODER),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5),
    "t5_gated": ("T5ForConditionalGeneration", "T5Config", {**T5, "feed_forward_proj": "gated-gelu"}),
    "t5_classifier": ("T5ForSequenceClassification", "T5Config", T5),
    "mt5": ("MT5ForConditionalGeneration", "MT5Config", T5),
    "umt5": ("UMT5ForConditionalGeneration", "UMT5Config", T5),
    "bert": ("BertForPreTraining", "BertConfig", ENCODER),
    "bert_bare": ("BertModel", "BertConfig", ENCODER),
    "bert_classifier": ("BertForSequenceClassification", "BertConfig", ENCODER),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", ENCODER),
    "roberta_classifier": ("RobertaForSequenceClassification", "RobertaConfig", ENCODER),
    "xlm_roberta": ("XLMRobertaForMaskedLM", "XLMRobertaConfig", ENCODER),
    "clip": ("CLIPModel", "CLIPConfig", CLIP),
    "clip_tower": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", TOWER),
    "clip_classifier": ("CLIPForImageClassification", "CLIPConfig", CLIP),
    "vit": ("ViTForImageClassification", "ViTConfig", TOWER),
    "vit_bare": ("ViTModel", "ViTConfig", TOWER),
    "llava": (
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {
            "text_config": {"model_type": "llama", **GROUPED},
            "vision_config": {"model_type": "clip_vision_model", **TOWER},
            "image_token_index": 60,
        },
    ),
    "llava_next": (
        "LlavaNextForConditionalGeneration",
        "LlavaNextConfig",
        {
            "text_config": {"model_type": "mistral", **HEADS},
            "vision_config": {"model_type": "clip_vision_model", **TOWER},
            "image_token_index": 60,
        },
    ),
    "mistral3": (
        "Mistral3ForConditionalGeneration",
        "Mistral3Config",
        {
            "text_config": {"model_type": "mistral", **HEADS},
            "vision_config": {"model_type": "pixtral", **TOWER, "head_dim": 8},
            "image_token_index": 60,
        },
    ),
    "qwen2_vl": (
        "Qwen2VLForConditionalGeneration",
        "Qwen2VLConfig",
        {"text_config": {**GROUPED, **ROPE}, "vision_config": {**QWEN_TOWER, "embed_dim": 32}, **TOKENS},
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLConfig",
        {"text_config": {**GROUPED, **ROPE}, "vision_config": {**QWEN_TOWER, "fullatt_block_indexes": [0]}, **TOKENS},
    ),
    "qwen3_vl": (
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLConfig",
        {"text_config": HEADS, "vision_config": {**QWEN_TOWER, "deepstack_visual_indexes": [0]}, **TOKENS},
    ),
    "qwen3_vl_moe": (
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3VLMoeConfig",
        {
            "text_config": {**HEADS, **EXPERTS},
            "vision_config": {**QWEN_TOWER, "deepstack_visual_indexes": [0]},
            **TOKENS,
        },
    ),
}
# Heads that are no output embeddings: classifiers.
CLASSIFIERS = ("score", "classifier", "classifier.out_proj", "classification_head.out_proj", "cls.seq_relationship")
PARTS = {"vision_tower", "projector", "mtp", "text_tower"}


@cache
def built(name: str) -> Any:
    """The model without numbers."""
    model_class, config_class, settings = MODELS[name]
    with torch.device("meta"):
        return getattr(transformers, model_class)(getattr(transformers, config_class)(**settings))


def role_of_module(module: nn.Module, parameter: torch.Tensor, is_head: bool) -> set[str]:
    """The roles that a parameter may have, from the class of its module and its dimensions."""
    kind = type(module).__name__
    if is_head:
        return {"head"} if parameter.dim() == 2 else {"vector"}
    if isinstance(module, nn.Embedding):
        return {"embedding", "position"}
    if kind.endswith(("Norm", "NormGated")):
        return {"norm"}
    if kind.endswith("Experts"):
        return {"expert_bank"}
    if kind.endswith("Router"):
        return {"router"}
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return {"convolution"} if parameter.dim() > 1 else {"vector"}
    if isinstance(module, nn.Linear | Conv1D):
        return {"linear"} if parameter.dim() == 2 else {"vector"}
    return {"position", "vector"}


def wanted_roles(model: Any) -> dict[str, set[str]]:
    head = model.get_output_embeddings()
    found: dict[str, set[str]] = {}
    for name, module in model.named_modules():
        is_head = module is head or name in CLASSIFIERS
        for own, parameter in module.named_parameters(prefix=name, recurse=False, remove_duplicate=False):
            # A gate on a shared expert is a router of one output.
            gate = name.endswith("shared_expert_gate")
            found[own] = {"router"} if gate else role_of_module(module, parameter, is_head)
    return found


@pytest.mark.parametrize("name", list(MODELS))
def test_every_tensor_has_the_role_that_its_module_gives_it(name: str) -> None:
    model = built(name)
    known = architecture_of(model.config.to_dict())
    wanted, unused = wanted_roles(model), set()
    for own, tensor in model.state_dict().items():
        role = known.role(known.canonical(own), tensor.shape)
        if role in PARTS:
            unused.add(role)
            assert known.is_optional(role)
            assert any(part in own for part in ("visual", "vision", "projector", "newline", "text_", "logit_scale")), (
                own
            )
        else:
            assert role in wanted[own], own
            assert not known.is_optional(role)
            assert not any(part in own for part in (".visual.", "vision_tower", "projector.")), own
    others = ("gemma3", "llava", "llava_next", "mistral3", "qwen3_5_moe", "qwen3_5_multimodal")
    multimodal = name in others or "_vl" in name
    assert ("vision_tower" in unused) == multimodal
    assert known.transposed == any(isinstance(module, Conv1D) for module in model.modules())


@pytest.mark.parametrize("name", list(MODELS))
def test_no_tensor_matches_two_roles(name: str) -> None:
    model = built(name)
    known = architecture_of(model.config.to_dict())
    for own in model.state_dict():
        matching = [role for role, matcher in known._matchers if matcher.fullmatch(known.canonical(own))]
        unused = [role for role in matching if role in PARTS]
        assert len(unused or matching) == 1, own


@pytest.mark.parametrize("name", list(MODELS))
def test_head_and_input_table_are_those_of_the_model(name: str) -> None:
    model = built(name)
    known = architecture_of(model.config.to_dict())
    if known.input_table and hasattr(model, "get_input_embeddings"):
        everything = model.named_parameters(remove_duplicate=False)
        tables = [parameter for own, parameter in everything if known.canonical(own) == known.input_table]
        assert tables
        assert all(table is model.get_input_embeddings().weight for table in tables)
    head = model.get_output_embeddings()
    if head is not None:
        assert known.head in {known.canonical(own) for own in model.state_dict()}
        assert any(module is head for own, module in model.named_modules() if f"{own}.weight" == known.head)


@pytest.mark.parametrize(
    "name",
    [
        "gpt_neox",
        "mixtral",
        "qwen3_moe",
        "gemma3",
        "vit",
        "llava",
        "mistral3",
        "qwen2_vl",
        "qwen2_5_vl",
        "qwen3_vl_moe",
    ],
)
def test_names_in_saved_files_become_those_of_the_loaded_model(name: str, tmp_path: Path) -> None:
    """transformers 5 loads these under other names than it saves them."""
    model_class, config_class, settings = MODELS[name]
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**settings))
    model.save_pretrained(tmp_path)
    known = architecture_of(json.loads((tmp_path / "config.json").read_text()))
    roles, from_disk = {}, set()
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118
            own = known.canonical(key)
            roles[own] = known.role(own, file.get_slice(key).get_shape())
            assert known.canonical(own) == own
            from_disk.add(own)
    loaded = {known.canonical(own) for own in model.state_dict()}
    assert {own for own in from_disk - loaded if ".experts." not in own} == set()
    tied = {known.head} if getattr(model.config, "tie_word_embeddings", False) else set()
    assert {own for own in loaded - from_disk if ".experts." not in own} <= tied
    assert all(roles[own] in ("linear", "expert_bank") for own in roles if ".experts." in own)
    matrices = {own.split(".")[-2] for own in roles if ".experts." in own and roles[own] == "linear"}
    assert matrices in ({part for parts in known.banks.values() for part in parts}, set())


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "qwen3_5_moe", "qwen3_vl_moe"])
def test_banks_are_the_parameters_of_experts_in_the_order_of_the_model(name: str) -> None:
    model = built(name)
    known = architecture_of(model.config.to_dict())
    modules = [module for module in model.modules() if type(module).__name__.endswith("Experts")]
    assert modules
    for module in modules:
        assert [own for own, _ in module.named_parameters(recurse=False)] == list(known.banks)


@pytest.mark.parametrize(
    "key", ["encoder.layer.0.output.LayerNorm.gamma", "bert.encoder.layer.0.output.LayerNorm.gamma"]
)
def test_names_of_the_first_berts(key: str) -> None:
    known = architecture_of({"model_type": "bert"})
    assert known.canonical(key) == "bert.encoder.layer.0.output.LayerNorm.weight"
    assert known.canonical("embeddings.LayerNorm.beta") == "bert.embeddings.LayerNorm.bias"


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("llama", "model.layers.31.self_attn.rotary_emb.inv_freq"),
        ("gpt_neox", "gpt_neox.layers.3.attention.masked_bias"),
        ("gpt2", "h.0.attn.bias"),
        ("bert", "bert.embeddings.position_ids"),
        ("clip", "vision_model.embeddings.position_ids"),
    ],
)
def test_buffers_are_optional(model_type: str, name: str) -> None:
    known = architecture_of({"model_type": model_type})
    role = known.role(known.canonical(name))
    assert role == "buffer"
    assert known.is_buffer(known.canonical(name))
    assert known.is_optional(role)


def test_what_is_optional_follows_from_the_modality() -> None:
    tower, text = "vision_model.encoder.layers.0.mlp.fc1.weight", "text_model.encoder.layers.0.mlp.fc1.weight"
    classifier = architecture_of({"model_type": "clip"})
    assert classifier.modality == "image_classifier"
    assert classifier.role(tower, (8, 4)) == "linear"
    assert classifier.role(text, (8, 4)) == "text_tower"
    assert classifier.is_optional("text_tower")
    assert not classifier.is_optional("linear")
    language = architecture_of({"model_type": "clip"}, "causal_lm")
    assert language.role(tower, (8, 4)) == "vision_tower"
    assert language.role(text, (8, 4)) == "linear"
    assert language.is_optional("vision_tower")


def test_an_unknown_model_type_is_refused_with_the_file_to_write() -> None:
    with pytest.raises(UserError, match=r"model_type opt has no architecture file: write .*architectures/opt\.yaml"):
        architecture_of({"model_type": "opt"})
    with pytest.raises(UserError, match=r"config\.json has no model_type"):
        architecture_of({})


def test_an_unknown_tensor_is_refused_by_name() -> None:
    known = architecture_of({"model_type": "llama"})
    with pytest.raises(
        UserError, match=r"model\.layers\.0\.mlp\.gate\.weight: scripts/mergetime/architectures/llama\.yaml has no role"
    ):
        known.role("model.layers.0.mlp.gate.weight", (4, 4))
    with pytest.raises(UserError, match=r"model\.norm\.weight: has 2 dimensions, but .* calls it norm"):
        known.role("model.norm.weight", (4, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rolls": {}}, "rolls: Extra inputs are not permitted"),
        ({"roles": {"linaer": ["a"]}}, "roles.linaer"),
        ({"roles": {"linear": ["a.{b"]}}, "pattern 'a.{b' has a brace that is not closed"),
        ({"roles": {"linear": []}}, "roles.linear"),
        ({"modality": "speech"}, "modality"),
        ({"model_types": []}, "model_types"),
        ({"transposed": "perhaps"}, "transposed"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"model_types": ["tiny"], "roles": {"linear": ["a.weight"]}} | change))
    with pytest.raises(UserError) as caught:
        architecture_at(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [(None, "no such file"), ("a: [", "not YAML"), ("- a", "the file")])
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "own.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        architecture_at(path)


def test_a_file_for_another_model_type_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("model_types: [tiny]\nroles: {linear: [a.weight]}\n")
    assert architecture_at(path, {"model_type": "tiny"}).role("a.weight", (2, 2)) == "linear"
    with pytest.raises(UserError, match="is for model_type tiny, the base's is llama"):
        architecture_at(path, {"model_type": "llama"})


def test_the_files_are_listed_and_each_model_type_is_in_one() -> None:
    assert {"llama.yaml", "gpt2.yaml", "without_base.yaml"} <= {path.name for path in files()}
    assert all(path.is_file() for path in files())
    types = [kind for path in files() for kind in yaml.safe_load(path.read_text())["model_types"]]
    assert len(types) == len(set(types))


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model.layers.0.mlp.up_proj.weight", "linear"),
        ("model.visual.blocks.0.attn.qkv.weight", "vision_tower"),
        ("visual.blocks.0.attn.qkv.weight", "vision_tower"),
        ("model.layers.0.audiovisual.proj.weight", "linear"),
        ("vision_model.encoder.layers.0.mlp.fc1.weight", "linear"),
        ("mtp.layers.0.mlp.up_proj.weight", "mtp"),
        ("lm_head.weight", "head"),
        ("transformer.lm_head.weight", "head"),
        ("embed_out.weight", "head"),
    ],
)
def test_modules_of_adapters_without_a_base(name: str, role: str) -> None:
    assert without_base().role(name, (4, 4)) == role


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("a.#.b", "a.12.b", True),
        ("a.#.b", "a.x.b", False),
        ("a.*.b", "a.x_y.b", True),
        ("a.*.b", "a.x.y.b", False),
        ("a.**.b", "a.x.y.b", True),
        ("a.{b,c.d}.e", "a.c.d.e", True),
        ("{a.,}b", "b", True),
        ("a.b", "axb", False),
        ("a.b", "a.b.c", False),
    ],
)
def test_patterns(pattern: str, name: str, matches: bool) -> None:
    import re

    assert bool(re.fullmatch(expression(pattern), name)) == matches
