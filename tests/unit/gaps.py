"""How far what is loaded of a merge is from base plus exact updates in fp64: `make gaps` writes docs/exactness.md."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from mergetime.artifacts.apply import applied
from mergetime.artifacts.forms import FormName
from mergetime.merging.engine import merge
from tests.unit.test_merging_architectures import HYBRID, T5, VISION

State = dict[str, torch.Tensor]
Saver = Callable[[PreTrainedModel, Path], None]
LIMIT = 1e-5
HEAD = """# What is loaded is what was merged

Made by `make gaps`; `tests/unit/test_gaps.py` fails where a gap is above 1e-5. Two experts of each kind are averaged,
the result is loaded by transformers (a checkpoint), PEFT (an adapter) or this package (a task vector), and its logits
are compared with those of the base plus the mean of the experts' updates, which transformers' and PEFT's own code gives
in fp64. The gap is the largest difference relative to the largest logit; files are in fp32. For comparison: how far the
base's logits are from the merged ones.

| what is merged | checkpoint | adapter | task vector | the base |
|---|---:|---:|---:|---:|
"""
VOCABULARY, IMAGE = 48, 8
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
ENCODER = SIZES | {"num_attention_heads": 2, "initializer_range": 0.2}
VIT = {name: size for name, size in ENCODER.items() if name != "vocab_size"} | {"image_size": IMAGE, "patch_size": 4}
PATCHES = (IMAGE // 4) ** 2
DECODER = SIZES | HEADS | {"initializer_range": 0.2, "pad_token_id": 0}
# The model's class, its config's class, and the settings.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", DECODER),
    "qwen2_tied": ("Qwen2ForCausalLM", "Qwen2Config", DECODER | {"tie_word_embeddings": True}),
    "qwen3_5": ("Qwen3_5ForCausalLM", "Qwen3_5TextConfig", HYBRID),
    "qwen3_5_vision": (
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5Config",
        {"text_config": HYBRID, "vision_config": VISION, "tie_word_embeddings": True},
    ),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        DECODER | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.2},
    ),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5),
    "bert": ("BertForMaskedLM", "BertConfig", ENCODER | {"max_position_embeddings": 64}),
    "vit": ("ViTForImageClassification", "ViTConfig", VIT),
    "llava": (
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {
            "vision_config": VIT | {"model_type": "clip_vision_model", "projection_dim": 16},
            "text_config": DECODER | {"model_type": "llama"},
            "image_token_index": VOCABULARY - 1,
        },
    ),
}


@dataclass(frozen=True)
class Kind:
    """Two experts of a base.

    Attributes:
        model: its key in :data:`MODELS`.
        adapters: what PEFT is told of each; empty for full checkpoints.
        outputs: the forms in which the merge is written.
        saved: how base and full checkpoints are saved.
        experts: how full checkpoints are saved, where that is not as the base.
    """

    model: str
    adapters: tuple[dict[str, Any], ...] = ()
    outputs: tuple[FormName, ...] = ("checkpoint", "delta")
    saved: Saver = PreTrainedModel.save_pretrained
    experts: tuple[Saver, ...] = ()


def both(**config: Any) -> tuple[dict[str, Any], ...]:
    """The same settings for two adapters."""
    return (config, config)


def in_bfloat16(model: PreTrainedModel, folder: Path) -> None:
    """Save a model in 16 bits."""
    model.to(torch.bfloat16).save_pretrained(folder)  # type: ignore[arg-type]


SEPARATE = PreTrainedModel.save_pretrained
FUSED = partial(PreTrainedModel.save_pretrained, save_original_format=False)
SHARDED = partial(PreTrainedModel.save_pretrained, max_shard_size="20KB")
ALL: tuple[FormName, ...] = ("checkpoint", "adapter", "delta")
APART: tuple[FormName, ...] = ("checkpoint", "adapter")
BANKS = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
PATTERNS = {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"layers.1.mlp.up_proj": 7}}
KINDS: dict[str, Kind] = {
    "full: Llama": Kind("llama"),
    "full: Llama in bf16": Kind("llama", saved=in_bfloat16),
    "full: Qwen2 with a tied head, in shards": Kind("qwen2_tied", saved=SHARDED),
    "full: Qwen3.5, linear attention": Kind("qwen3_5"),
    "full: Qwen3.5 with vision": Kind("qwen3_5_vision"),
    "full: Mixtral, matrices of experts apart": Kind("mixtral"),
    "full: Mixtral, banks": Kind("mixtral", saved=FUSED),
    "full: Qwen3, one expert with banks, base and the other apart": Kind("qwen3_moe", experts=(FUSED, SEPARATE)),
    "full: Qwen3, base and one expert with banks, the other apart": Kind(
        "qwen3_moe", saved=FUSED, experts=(FUSED, SEPARATE)
    ),
    "full: GPT-2": Kind("gpt2"),
    "full: T5": Kind("t5"),
    "full: BERT": Kind("bert"),
    "full: ViT": Kind("vit"),
    "full: LLaVA": Kind("llava"),
    "LoRA on all linear layers, rsLoRA, patterns of ranks and alphas": Kind(
        "qwen2", both(target_modules="all-linear", use_rslora=True, **PATTERNS), ALL
    ),
    "LoRA on different modules and of different ranks": Kind(
        "qwen2", ({"target_modules": ["q_proj"], "r": 2}, {"target_modules": ["v_proj", "up_proj"], "r": 3}), ALL
    ),
    "LoRA on embedding and head": Kind("qwen2", both(target_modules=["embed_tokens", "lm_head"]), ALL),
    "LoRA on the embedding of a tied base": Kind("qwen2_tied", both(target_modules=["embed_tokens"]), APART),
    "LoRA on the head of a tied base": Kind("qwen2_tied", both(target_modules=["q_proj", "lm_head"]), APART),
    "LoRA, embedding and head trained whole": Kind(
        "qwen2", both(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    ),
    "LoRA, the embedding of a tied base trained whole": Kind(
        "qwen2_tied", both(target_modules=["q_proj"], modules_to_save=["embed_tokens"]), ("checkpoint",)
    ),
    "LoRA, rows of some tokens trained": Kind(
        "qwen2", both(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [3, 5], "lm_head": [7]})
    ),
    "LoRA on banks of experts, which the base's files hold apart": Kind("mixtral", both(**BANKS)),
    "LoRA on banks of experts": Kind("qwen3_moe", both(**BANKS), saved=FUSED),
    "DoRA": Kind("qwen2", both(target_modules=["q_proj", "down_proj"], use_dora=True)),
    "LoRA, biases trained": Kind("qwen2", both(target_modules=["q_proj"], bias="all", lora_bias=True)),
    "LoRA on linear attention": Kind("qwen3_5", both(target_modules=["in_proj_qkv", "out_proj", "q_proj"]), ALL),
    "LoRA on a text model with vision": Kind("qwen3_5_vision", both(target_modules="all-linear"), ALL),
    "LoRA on vision and text": Kind("llava", both(target_modules=["q_proj", "fc1"]), ALL),
    "LoRA on GPT-2's transposed weights": Kind(
        "gpt2", both(target_modules=["c_attn", "c_fc"], fan_in_fan_out=True), ALL
    ),
    "LoRA on T5": Kind("t5", both(target_modules=["q", "wi"]), ALL),
    "LoRA on ViT, the head trained whole": Kind("vit", both(target_modules=["q_proj"], modules_to_save=["classifier"])),
}


def load(kind: Kind, folder: Path, dtype: torch.dtype = torch.float64) -> Any:
    """A checkpoint as transformers loads it, which must find every tensor it has and no other."""
    model, info = getattr(transformers, MODELS[kind.model][0]).from_pretrained(
        folder,
        dtype=dtype,
        output_loading_info=True,
        **({"experts_implementation": "eager"} if kind.model in ("mixtral", "qwen3_moe") else {}),
    )
    assert not any(info[keys] for keys in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def untied(kind: Kind, base: Path) -> Any:
    """The base with a head of its own, so that an update of the embedding, or of the head, moves nothing else."""
    model = load(kind, base)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear):
        head.weight = nn.Parameter(head.weight.detach().clone())
    return model


def moved(model: Any, seed: int, size: float) -> Any:
    """The model with all that is trained moved at random."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model


def base_of(kind: Kind, folder: Path) -> Path:
    """A random model, no tensor of which is left at its initial constant."""
    model, config, settings = MODELS[kind.model]
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**settings))
    kind.saved(moved(made, 0, 0.1), folder)
    return folder


def expert_of(kind: Kind, base: Path, folder: Path, place: int) -> Path:
    """A full fine-tune of the base, or an adapter on it."""
    model = load(kind, base, torch.float32)
    if not kind.adapters:
        saved = kind.experts[place] if kind.experts else kind.saved
        saved(moved(model, 1 + place, 0.02), folder)
        return folder
    settings: dict[str, Any] = {"r": 2, "lora_alpha": 4, **kind.adapters[place]}
    adapted = get_peft_model(model, LoraConfig(**settings))
    moved(adapted, 1 + place, 0.2).save_pretrained(str(folder))
    return folder


def with_adapter(kind: Kind, base: Path, folder: Path) -> Any:
    """The base with an adapter in fp64, as PEFT loads it."""
    return PeftModel.from_pretrained(untied(kind, base), str(folder), autocast_adapter_dtype=False).double().eval()


def state_of(kind: Kind, base: Path, expert: Path) -> State:
    """All weights of an expert in fp64."""
    model = with_adapter(kind, base, expert).merge_and_unload() if kind.adapters else load(kind, expert)
    state: State = model.state_dict()
    return state


def inputs_of(model: Any) -> dict[str, torch.Tensor]:
    """What a model is given: tokens, an image, or both."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, IMAGE, IMAGE, generator=generator, dtype=torch.float64)
    tokens = torch.arange(1, 25).reshape(2, 12)
    kind = model.config.model_type
    if kind == "vit":
        return {"pixel_values": image}
    if kind == "llava":
        marks = torch.full((2, PATCHES), VOCABULARY - 1)
        return {"input_ids": torch.cat([marks, tokens], dim=1), "pixel_values": image}
    return {"input_ids": tokens, **({"decoder_input_ids": tokens.flip(1)} if kind == "t5" else {})}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """The logits of a model on fixed inputs."""
    scores: torch.Tensor = model(**inputs_of(model)).logits
    return scores


@contextmanager
def loaded(kind: Kind, base: Path, out: Path, output: FormName) -> Iterator[Any]:
    """The result of a merge in fp64, by the program that its form is for."""
    if output == "checkpoint":
        yield load(kind, out)
    elif output == "adapter":
        yield with_adapter(kind, base, out)
    else:
        model = load(kind, base)
        with applied(model, out):
            yield model


def gaps(kind: Kind, folder: Path) -> dict[str, float]:
    """The gap of the mean of two experts by the form in which it is written; ``base`` is that of no update."""
    base = base_of(kind, folder / "base")
    experts = [expert_of(kind, base, folder / name, place) for place, name in enumerate("ab")]
    start = untied(kind, base)
    before: State = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    states = [state_of(kind, base, expert) for expert in experts]
    unmoved = logits(start)
    start.load_state_dict({name: sum(state[name] for state in states) / 2 for name in before})
    wanted = logits(start)
    measured = {}
    for output in kind.outputs:
        out = folder / output
        pool = [(expert.name, expert) for expert in experts]
        merge(pool, method="simple_average", params={}, space="delta", seed=None, base=base, output=output, out=out)
        with loaded(kind, base, out, output) as model:
            measured[str(output)] = gap(logits(model), wanted)
    return measured | {"base": gap(unmoved, wanted)}


def gap(scores: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference relative to the largest logit."""
    return float((scores - wanted).abs().max() / wanted.abs().max())


def row(words: str, measured: dict[str, float]) -> str:
    """A line of the table, in one digit, which any processor gives."""
    cells = [f"{measured[form]:.0e}" if form in measured else "-" for form in (*ALL, "base")]
    return f"| {words} | {' | '.join(cells)} |"


def main() -> None:
    print(HEAD, end="")
    for words, kind in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            print(row(words, gaps(kind, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
