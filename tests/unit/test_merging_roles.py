"""Merges where the role of a tensor decides what a method does with it: tables, routers, banks, transposed weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from mergetime.artifacts.apply import applied
from mergetime.core.errors import UserError
from mergetime.measuring import data_statistics
from mergetime.merging.engine import merge
from mergetime.merging.methods.spectral import boost
from mergetime.modalities import learning
from mergetime.modalities.causal_lm.encoding import Encoded

State = dict[str, torch.Tensor]
Experts = list[tuple[str, Path]]
NAMES = ("code", "math")
SIZES: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}
TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
GPT2: dict[str, Any] = {"vocab_size": 48, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
SPECTRAL = ("tsv_merge", "iso_c", "subspace_boosting")
BANK, ROUTER = "model.layers.0.mlp.experts.down_proj", "model.layers.0.mlp.gate.weight"
UP = "model.layers.0.mlp.up_proj.weight"


def write(folder: Path, state: State, model_type: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "tie_word_embeddings": False}))
    return folder


def read(folder: Path) -> State:
    return load_file(folder / "model.safetensors")


def noise(state: State, seed: int, size: float = 0.01) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {name: tensor + size * torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}


def written(folder: Path, state: State, model_type: str) -> tuple[Path, Experts]:
    """A base with this state and two experts of it, without models."""
    base = write(folder / "base", noise(state, 9, 1.0), model_type)
    return base, [(name, write(folder / name, noise(read(base), seed), model_type)) for seed, name in enumerate(NAMES)]


def saved(folder: Path, model: Any) -> tuple[Path, Experts]:
    """A model as transformers saves it, and two full experts of it."""
    model.save_pretrained(folder / "base")
    experts = []
    for seed, name in enumerate(NAMES):
        (folder / name).mkdir()
        (folder / name / "config.json").write_bytes((folder / "base" / "config.json").read_bytes())
        save_file(noise(read(folder / "base"), seed), folder / name / "model.safetensors", metadata={"format": "pt"})
        experts.append((name, folder / name))
    return folder / "base", experts


def run(experts: Experts, base: Path | None, out: Path, method: str, **given: Any) -> State:
    settings: dict[str, Any] = {"params": {}, "space": "delta", "seed": 1, "output": "checkpoint", **given}
    merge(experts, method=method, base=base, out=out, **settings)
    return load_file(next(out.glob("*.safetensors")))


def make(name: str) -> Any:
    torch.manual_seed(0)
    built = {
        "pythia": lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SIZES)),
        "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)),
        "bert": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES)),
        "roberta": lambda: transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**SIZES)),
        "clip": lambda: transformers.CLIPModel(
            transformers.CLIPConfig(text_config=SIZES, vision_config=TOWER, projection_dim=12)
        ),
        "vit": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**TOWER)),
    }
    return built[name]()


@pytest.mark.parametrize("method", SPECTRAL)
@pytest.mark.parametrize(
    ("name", "tables", "matrices"),
    [
        (
            "pythia",
            ["gpt_neox.embed_in.weight", "embed_out.weight"],
            ["gpt_neox.layers.1.attention.query_key_value.weight", "gpt_neox.layers.0.mlp.dense_4h_to_h.weight"],
        ),
        ("gpt2", ["transformer.wte.weight", "transformer.wpe.weight"], ["transformer.h.0.attn.c_attn.weight"]),
        (
            "bert",
            [
                "bert.embeddings.word_embeddings.weight",
                "bert.embeddings.position_embeddings.weight",
                "bert.embeddings.token_type_embeddings.weight",
                "classifier.weight",
            ],
            ["bert.encoder.layer.0.attention.self.query.weight", "bert.pooler.dense.weight"],
        ),
        (
            "roberta",
            ["roberta.embeddings.position_embeddings.weight", "classifier.out_proj.weight"],
            ["roberta.encoder.layer.1.output.dense.weight", "classifier.dense.weight"],
        ),
        (
            "clip",
            [
                "text_model.embeddings.token_embedding.weight",
                "vision_model.embeddings.position_embedding.weight",
                "vision_model.embeddings.patch_embedding.weight",
            ],
            ["vision_model.encoder.layers.0.mlp.fc1.weight", "visual_projection.weight"],
        ),
        (
            "vit",
            ["vit.embeddings.position_embeddings", "vit.embeddings.cls_token", "classifier.weight"],
            ["vit.encoder.layer.0.attention.attention.query.weight", "vit.encoder.layer.0.output.dense.weight"],
        ),
    ],
)
def test_spectral_methods_leave_tables_to_plain_sums(
    tmp_path: Path, name: str, tables: list[str], matrices: list[str], method: str
) -> None:
    base, experts = saved(tmp_path, make(name))
    found = run(experts, base, tmp_path / "out", method)
    plain = run(experts, base, tmp_path / "plain", "task_arithmetic" if "boost" in method else "simple_average")
    for table in tables:
        torch.testing.assert_close(found[table], plain[table], rtol=0, atol=1e-7)
    for matrix in matrices:
        assert float((found[matrix] - plain[matrix]).abs().max()) > 1e-4, matrix


@pytest.mark.parametrize("method", SPECTRAL)
def test_a_bank_is_merged_matrix_by_matrix(tmp_path: Path, method: str) -> None:
    stacked, apart = (
        torch.zeros(4, 12, 8),
        [f"model.layers.0.mlp.experts.{place}.down_proj.weight" for place in range(4)],
    )
    router = {ROUTER: torch.zeros(4, 12)}
    base, experts = written(tmp_path / "bank", {BANK: stacked, **router}, "qwen3_moe")

    def split(folder: Path) -> Path:
        state = read(folder)
        matrices = dict(zip(apart, (own.clone() for own in state.pop(BANK)), strict=True))
        return write(tmp_path / "apart" / folder.name, {**state, **matrices}, "qwen3_moe")

    found = run(experts, base, tmp_path / "out", method)
    each = run([(name, split(folder)) for name, folder in experts], split(base), tmp_path / "each", method)
    assert torch.equal(found[BANK], torch.stack([each[name] for name in apart]))
    plain = run(experts, base, tmp_path / "plain", "task_arithmetic" if "boost" in method else "simple_average")
    torch.testing.assert_close(found[ROUTER], plain[ROUTER], rtol=0, atol=1e-7)
    assert float((found[BANK] - plain[BANK]).abs().max()) > 1e-4


def test_boosted_ties_finishes_a_bank_matrix_by_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mergetime.merging.pool.BLOCK", {"cpu": 100})  # One matrix per block, and less than the bank.
    base, experts = written(tmp_path, {BANK: torch.zeros(4, 12, 8)}, "mixtral")
    ties = run(experts, base, tmp_path / "ties", "ties", output="delta")[BANK]
    found = run(experts, base, tmp_path / "out", "subspace_boosting_ties", params={"beta": 0.5}, output="delta")[BANK]
    wanted = torch.stack([boost(matrix.double(), 0.5).float() for matrix in ties])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-7)
    assert float((found - ties).abs().max()) > 1e-4


def test_regmean_refuses_a_bank_whose_inputs_nobody_measured(tmp_path: Path) -> None:
    base, experts = written(tmp_path, {BANK: torch.zeros(4, 12, 8)}, "mixtral")
    measured = tmp_path / "gram.safetensors"
    save_file({"a": torch.zeros(1)}, measured)
    with pytest.raises(UserError, match=f"regmean: {BANK} is a bank of 4 experts; it needs the inputs of each"):
        run(experts, base, tmp_path / "out", "regmean", statistics=dict.fromkeys(NAMES, measured))


def test_regmean_turns_transposed_weights_over(tmp_path: Path) -> None:
    """GPT-2's [inputs, outputs] gives the transpose of what the same numbers as [outputs, inputs] give."""
    generator = torch.Generator().manual_seed(3)
    grams = {}
    for name in NAMES:
        inputs = torch.randn(40, 8, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 2, 8)
        grams[name] = (inputs.T @ inputs / 40).float()
    transposed = "transformer.h.0.mlp.c_fc.weight"
    base, experts = written(tmp_path / "llama", {UP: torch.zeros(12, 8)}, "llama")
    turned = {
        folder.name: write(tmp_path / "gpt2" / folder.name, {transposed: read(folder)[UP].T.contiguous()}, "gpt2")
        for folder in (base, *(folder for _, folder in experts))
    }
    results = {}
    for place, (weight, own_base, own_experts) in enumerate(
        [(UP, base, experts), (transposed, turned["base"], [(name, turned[name]) for name in NAMES])]
    ):
        files = {name: tmp_path / f"{name}{place}.safetensors" for name in NAMES}
        for name, path in files.items():
            save_file({weight: grams[name]}, path)
        out = tmp_path / f"out{place}"
        results[weight] = run(own_experts, own_base, out, "regmean", statistics=files)[weight]
    torch.testing.assert_close(results[transposed].T, results[UP], rtol=0, atol=1e-7)
    mean = (read(experts[0][1])[UP] + read(experts[1][1])[UP]) / 2
    assert float((results[UP] - mean).abs().max()) > 1e-4


def test_gram_matrices_of_transposed_layers_are_of_their_inputs() -> None:
    model = make("gpt2").eval()
    seen: list[torch.Tensor] = []
    layer = model.transformer.h[0].mlp.c_fc
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()[0].double()))
    example = Encoded([3, 5, 7, 9, 11, 13], 3)
    name = "transformer.h.0.mlp.c_fc.weight"
    found = data_statistics.gram(learning.get("causal_lm"), model, [example], [name, "transformer.wte.weight"])
    handle.remove()
    assert found.keys() == {name}
    torch.testing.assert_close(found[name].double(), seen[0].T @ seen[0] / 6, rtol=1e-5, atol=1e-6)


def test_an_unknown_base_is_refused_and_a_given_file_mends_it(tmp_path: Path) -> None:
    base, experts = written(tmp_path, {"table.weight": torch.zeros(9, 6), "map.weight": torch.zeros(8, 6)}, "tiny")
    with pytest.raises(UserError, match=rf"base {base}: model_type tiny has no architecture file"):
        run(experts, base, tmp_path / "out", "tsv_merge")
    own = tmp_path / "tiny.yaml"
    own.write_text(yaml.safe_dump({"model_types": ["tiny"], "roles": {"linear": ["map.weight"]}}))
    with pytest.raises(UserError, match=rf"base {base}: table\.weight: {own} has no role for it"):
        run(experts, base, tmp_path / "out", "simple_average", architecture=own)
    roles = {"linear": ["map.weight"], "embedding": ["table.weight"]}
    (tmp_path / "right.yaml").write_text(yaml.safe_dump({"model_types": ["tiny"], "roles": roles}))
    found = run(experts, base, tmp_path / "out", "tsv_merge", architecture=tmp_path / "right.yaml")
    plain = run(experts, base, tmp_path / "plain", "simple_average", architecture=tmp_path / "right.yaml")
    torch.testing.assert_close(found["table.weight"], plain["table.weight"], rtol=0, atol=1e-7)
    assert float((found["map.weight"] - plain["map.weight"]).abs().max()) > 1e-4


def test_the_command_records_the_file_it_was_given(tmp_path: Path) -> None:
    import merge_experts

    base, experts = written(tmp_path, {"map.weight": torch.zeros(8, 6)}, "tiny")
    own = tmp_path / "tiny.yaml"
    own.write_text("model_types: [tiny]\nroles: {linear: [map.weight]}\n")
    given = [part for name, folder in experts for part in ("--expert", f"{name}={folder}")]
    merge_experts.run(
        [
            *given,
            "--base",
            str(base),
            "--method",
            "tsv_merge",
            "--architecture",
            str(own),
            "--out",
            str(tmp_path / "out"),
        ]
    )
    record = json.loads((tmp_path / "out" / "merged.json").read_text())
    assert "architecture" in json.dumps(record["inputs"])


@pytest.mark.parametrize("method", ["tsv_merge", "knots"])
def test_adapters_with_a_base_take_roles_from_it(tmp_path: Path, method: str) -> None:
    """LoRA on Pythia's head: without a base its name tells, with one the file of GPT-NeoX."""
    base, _ = saved(tmp_path, make("pythia"))
    experts = []
    for seed, name in enumerate(NAMES):
        model = get_peft_model(make("pythia"), LoraConfig(r=2, target_modules=["dense", "lm_head"]))
        generator = torch.Generator().manual_seed(seed)
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(str(tmp_path / f"{name}_adapter"), save_embedding_layers=False)
        experts.append((name, tmp_path / f"{name}_adapter"))
    with_base = run(experts, base, tmp_path / "with", method, output="delta")
    without = run(experts, None, tmp_path / "without", method, output="delta")
    plain = run(experts, base, tmp_path / "plain", "simple_average", output="delta")
    assert with_base.keys() == without.keys()
    assert all(torch.equal(tensor, without[name]) for name, tensor in with_base.items())
    torch.testing.assert_close(with_base["lm_head.weight"], plain["lm_head.weight"], rtol=0, atol=1e-6)
    dense = "gpt_neox.layers.0.attention.dense.weight"
    assert float((with_base[dense] - plain[dense]).abs().max()) > 1e-3


def test_a_multimodal_model_that_is_loaded_whole_takes_adapters_and_checkpoints(tmp_path: Path) -> None:
    """Gemma 3 nests its text model when it is loaded, and its checkpoints name it in another way."""
    config = transformers.Gemma3Config(
        text_config={**SIZES, "num_key_value_heads": 1, "head_dim": 8},
        vision_config=TOWER,
        mm_tokens_per_image=4,
        image_token_index=40,
        boi_token_index=41,
        eoi_token_index=42,
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config)
    base, experts = saved(tmp_path, model)
    weight = model.model.language_model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    merged = run(experts, base, tmp_path / "out", "simple_average")
    key = "language_model.model.layers.0.mlp.up_proj.weight"
    with applied(model, tmp_path / "out"):
        assert torch.equal(model.model.language_model.layers[0].mlp.up_proj.weight, merged[key])
    run(experts, base, tmp_path / "delta", "simple_average", output="delta")
    with applied(model, tmp_path / "delta"):
        torch.testing.assert_close(model.model.language_model.layers[0].mlp.up_proj.weight, merged[key])
    assert torch.equal(model.model.language_model.layers[0].mlp.up_proj.weight, before)
