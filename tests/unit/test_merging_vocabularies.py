"""Experts whose vocabulary has a few rows more or less than the base's: refused, dropped, kept, filled."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from mergetime.artifacts.rows import Filled, fitted
from mergetime.core.errors import UserError
from mergetime.merging.engine import merge
from mergetime.merging.preview import Preview

State = dict[str, torch.Tensor]
ROWS = 40
SIZES: dict[str, Any] = {
    "vocab_size": ROWS,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
}


def llama(*, tied: bool) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1, tie_word_embeddings=tied))


def vision_language() -> PreTrainedModel:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2]}
    text = {**SIZES, "num_key_value_heads": 1, "rope_parameters": rope}
    vision = {"depth": 1, "embed_dim": 8, "hidden_size": 16, "num_heads": 1, "patch_size": 2}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision))


def bert() -> PreTrainedModel:
    model = BertForMaskedLM(BertConfig(**SIZES, max_position_embeddings=32))
    torch.nn.init.normal_(model.cls.predictions.bias)
    return model


MODELS = {
    "tied": lambda: llama(tied=True),
    "untied": lambda: llama(tied=False),
    "vision_language": vision_language,
    "bert": bert,
}


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def resized(model: PreTrainedModel, rows: int) -> PreTrainedModel:
    model.resize_token_embeddings(rows, mean_resizing=False)
    return model


def moved(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """The model with all its parameters moved a little."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


def load(folder: Path, like: PreTrainedModel | None = None) -> PreTrainedModel:
    kind = AutoModelForCausalLM if like is None else type(like)
    model: PreTrainedModel = kind.from_pretrained(folder, dtype=torch.float32)
    return model


@torch.no_grad()
def logits(model: Any, rows: int = ROWS) -> torch.Tensor:
    found: torch.Tensor = model.double().eval()(input_ids=torch.arange(rows)[None, -24:]).logits
    return found


def run(experts: list[Path], base: Path | None, out: Path, method: str = "simple_average", **given: Any) -> Any:
    settings: dict[str, Any] = {"params": {}, "space": "delta", "seed": 1, "output": "checkpoint", **given}
    return merge([(folder.name, folder) for folder in experts], method=method, base=base, out=out, **settings)


def refusal(experts: list[Path], base: Path | None, out: Path, **given: Any) -> str:
    with pytest.raises(UserError) as caught:
        run(experts, base, out, **given)
    assert not out.exists()
    return str(caught.value)


def read(folder: Path) -> State:
    state: State = load_file(folder / "model.safetensors")
    return state


def mean(base: State, experts: list[State]) -> State:
    """The mean of experts in float64: of rows that all or some have more, over those; of absent ones, the base's."""
    merged = {}
    for name, weights in base.items():
        held = [expert[name].double() for expert in experts]
        rows = max(len(weights), *map(len, held))
        first = [torch.cat([tensor[: len(weights)], weights[len(tensor) :].double()]) for tensor in held]
        beyond = [
            torch.stack([tensor[row] for tensor in held if len(tensor) > row]) for row in range(len(weights), rows)
        ]
        merged[name] = torch.cat([torch.stack(first).mean(dim=0), *(part.mean(dim=0)[None] for part in beyond)])
    return merged


@pytest.mark.parametrize("extra_rows", ["drop", "keep"])
@pytest.mark.parametrize("kind", MODELS)
def test_full_checkpoints_of_more_and_fewer_rows(kind: str, extra_rows: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MODELS[kind]()
    base = saved(model, tmp_path / "base")
    grown = {"a": ROWS + 1, "b": ROWS + 3, "c": ROWS - 2, "d": ROWS}
    experts = [
        saved(moved(resized(load(base, model), rows), seed), tmp_path / name)
        for seed, (name, rows) in enumerate(grown.items())
    ]
    out = tmp_path / "out"
    told = run(experts, base, out, extra_rows=extra_rows)
    change = "kept" if extra_rows == "keep" else "dropped"
    assert told["vocabulary"] == {
        "a": {"rows": ROWS + 1, change: 1},
        "b": {"rows": ROWS + 3, change: 3},
        "c": {"rows": ROWS - 2, "filled": 2},
    }
    rows = ROWS + 3 if extra_rows == "keep" else ROWS
    wanted = mean(read(base), [read(expert) for expert in experts])
    by_token = {name for name, tensor in wanted.items() if len(tensor) == ROWS + 3}
    assert len(by_token) == {"tied": 1, "untied": 2, "vision_language": 2, "bert": 2}[kind]
    state = read(out)
    assert state.keys() == wanted.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(tensor.double(), wanted[name][: len(tensor)], rtol=0, atol=1e-6)
        assert len(tensor) == (rows if name in by_token else len(wanted[name]))
    config = json.loads((out / "config.json").read_text())
    assert config.get("text_config", config)["vocab_size"] == rows
    reference = resized(load(base, model), rows).double()
    reference.load_state_dict(
        {
            reference_name: wanted[name][:rows] if name in by_token else wanted[name]
            for reference_name, name in names_in(reference, wanted).items()
        },
        strict=False,
    )
    reference.tie_weights()
    merged = logits(load(out, model), rows)
    assert merged.shape[-1] == rows
    assert float((merged - logits(reference, rows)).abs().max()) < 1e-5
    assert float((merged - logits(resized(load(base, model), rows), rows)).abs().max()) > 1e-3


def names_in(model: PreTrainedModel, state: dict[str, Any]) -> dict[str, str]:
    """The model's parameters, and what a checkpoint calls them."""
    called = {
        name: name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        for name, _ in model.named_parameters()
    }
    return {name: file if file in state else name for name, file in called.items() if file in state or name in state}


@pytest.mark.parametrize("method", ["ties", "model_stock", "tsv_merge", "dare_ties"])
def test_rows_beyond_the_base_change_no_other_row(method: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = saved(llama(tied=False), tmp_path / "base")
    same = [saved(moved(load(base), seed), tmp_path / name) for seed, name in enumerate("ab")]
    plain = tmp_path / "plain"
    run(same, base, plain, method)
    for expert in same:
        state = read(expert)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            state[name] = torch.cat([state[name], torch.full((1, 16), 9.0)])
        save_file(state, expert / "model.safetensors", metadata={"format": "pt"})
    for extra_rows in ("drop", "keep"):
        run(same, base, tmp_path / extra_rows, method, extra_rows=extra_rows)
        for name, tensor in read(tmp_path / extra_rows).items():
            wanted = read(plain)[name]
            assert tensor[: len(wanted)].equal(wanted)
            assert extra_rows == "keep" or tensor.shape == wanted.shape
            assert tensor[len(wanted) :].eq(9.0).all()


def adapter(base: Path, folder: Path, seed: int, rows: int, **config: Any) -> Path:
    """An adapter as PEFT saves it, on the base with other rows, with all that is trained moved at random."""
    model = load(base)
    torch.manual_seed(seed)
    resized(model, rows)
    peft = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, **config))
    for parameter in peft.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
    peft.save_pretrained(str(folder))
    # What the adapter computes, on the base as it was resized.
    merged = peft.merge_and_unload()
    assert isinstance(merged, PreTrainedModel)
    saved(merged, folder.parent / f"{folder.name}-merged")
    return folder


CONFIGS: dict[str, dict[str, Any]] = {
    "whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "factors": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "head": {"target_modules": ["lm_head"], "use_dora": True},
}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("rows", "extra_rows"), [(ROWS + 2, "drop"), (ROWS + 2, "keep"), (ROWS - 2, "drop")])
def test_adapters_on_a_resized_base_merge_as_peft_does(rows: int, extra_rows: Any, config: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = saved(llama(tied=False), tmp_path / "base")
    experts = [adapter(base, tmp_path / name, seed, rows, **CONFIGS[config]) for seed, name in enumerate("ab")]
    out = tmp_path / "out"
    if config == "head" and rows < ROWS:
        message = refusal(experts, base, out, extra_rows=extra_rows)
        assert f"scales lm_head.weight by DoRA, with norms of each row, of which it has {rows} and the" in message
        return
    if config == "head" and extra_rows == "keep":
        # PEFT saves the head that has factors, and not the embedding, which was resized, too.
        message = refusal(experts, base, out, extra_rows=extra_rows)
        assert f"does not hold the rows of model.embed_tokens.weight beyond the base's {ROWS}, though" in message
        return
    told = run(experts, base, out, extra_rows=extra_rows)
    change = "filled" if rows < ROWS else "kept" if extra_rows == "keep" else "dropped"
    assert told["vocabulary"] == {name: {"rows": rows, change: 2} for name in "ab"}
    merged = [read(tmp_path / f"{name}-merged") for name in "ab"]
    wanted = mean(read(base), merged)
    for name, tensor in read(out).items():
        torch.testing.assert_close(tensor.double(), wanted[name][: len(tensor)], rtol=0, atol=1e-5)
        assert len(tensor) == len(wanted[name]) or (extra_rows == "drop" and len(tensor) == ROWS)
    written = rows if extra_rows == "keep" else ROWS
    assert logits(load(out), written).shape[-1] == written


def test_factors_of_other_rows_merge_into_an_adapter_for_the_base(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = saved(llama(tied=False), tmp_path / "base")
    experts = [adapter(base, tmp_path / "a", 1, ROWS + 2, **CONFIGS["factors"])]
    for space in ("delta", "adapter"):
        out = tmp_path / space
        run(experts, base, out, extra_rows="drop", output="adapter", space=space)
        with_adapter = PeftModel.from_pretrained(load(base), str(out)).merge_and_unload()
        wanted = read(tmp_path / "a-merged")
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            torch.testing.assert_close(with_adapter.state_dict()[name], wanted[name][:ROWS], rtol=0, atol=1e-5)


def test_adapters_on_a_tied_base(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = saved(llama(tied=True), tmp_path / "base")
    expert = adapter(base, tmp_path / "a", 1, ROWS + 2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    for extra_rows, rows in (("drop", ROWS), ("keep", ROWS + 2)):
        out = tmp_path / extra_rows
        run([expert], base, out, extra_rows=extra_rows)
        state, file = read(out), load_file(expert / "adapter_model.safetensors")
        head = file["base_model.model.lm_head.modules_to_save.weight"]
        torch.testing.assert_close(state["lm_head.weight"], head[:rows], rtol=0, atol=1e-6)
        assert state["model.embed_tokens.weight"][:ROWS].equal(read(base)["model.embed_tokens.weight"])
        assert len(state["model.embed_tokens.weight"]) == rows


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return saved(llama(tied=False), tmp_path / "base")


@pytest.mark.parametrize(
    ("rows", "mend"), [(ROWS + 1, "drop leaves out rows beyond"), (ROWS - 1, "drop, rows that an")]
)
def test_without_the_option_other_rows_are_refused(rows: int, mend: str, base: Path, tmp_path: Path) -> None:
    full = saved(resized(load(base), rows), tmp_path / "full")
    whole = adapter(base, tmp_path / "whole", 1, rows, **CONFIGS["whole"])
    factors = adapter(base, tmp_path / "factors", 1, rows, target_modules=["lm_head"])
    for expert in (full, whole, factors):
        message = refusal([expert], base, tmp_path / "out")
        assert message.startswith(f"expert {expert.name} ({expert}): ")
        assert (
            f"the vocabularies differ; merge_experts.py: {'--extra-rows' if rows > ROWS else 'with --extra-rows'}"
            in (message)
        )
        assert mend in message
    weights = load_file(factors / "adapter_model.safetensors")
    kept = {key: tensor for key, tensor in weights.items() if ".lora_" in key}
    save_file(kept, factors / "adapter_model.safetensors")
    assert mend in refusal([factors], base, tmp_path / "out")
    other = adapter(base, tmp_path / "other", 1, ROWS, target_modules=["lm_head"])
    kept = {key: tensor for key, tensor in load_file(other / "adapter_model.safetensors").items() if ".lora_" in key}
    save_file(kept, other / "adapter_model.safetensors")
    assert "it needs --base, too" in refusal([factors, other], None, tmp_path / "out", output="delta")


def test_what_cannot_be_kept_is_refused(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    full = saved(resized(load(base), ROWS + 1), tmp_path / "full")
    message = refusal([full], base, out, extra_rows="keep", output="delta")
    assert message == (
        "--extra-rows keep: appends rows to a checkpoint, and the output is a delta; use --output checkpoint, or "
        "--extra-rows drop"
    )
    factors = adapter(base, tmp_path / "factors", 1, ROWS + 1, target_modules=["lm_head"])
    assert refusal([factors], None, out, extra_rows="drop", output="delta").endswith("give --base its folder")
    weights = load_file(factors / "adapter_model.safetensors")
    save_file({key: w for key, w in weights.items() if ".lora_" in key}, factors / "adapter_model.safetensors")
    message = refusal([factors], base, out, extra_rows="keep")
    assert f"does not hold the rows of lm_head.weight beyond the base's {ROWS}, though its vocabulary has" in message
    dora = adapter(base, tmp_path / "dora", 1, ROWS + 1, target_modules=["embed_tokens"], use_dora=True)
    message = refusal([dora], base, out, extra_rows="drop")
    assert "scales model.embed_tokens.weight by DoRA, with norms over all rows" in message
    state = read(full)
    save_file(state | {"lm_head.weight": state["lm_head.weight"][:ROWS].clone()}, full / "model.safetensors")
    message = refusal([full], base, out, extra_rows="drop")
    assert message.endswith("though both have one for each token; save the expert again with one vocabulary")
    assert f"lm_head.weight has {ROWS} rows and model.embed_tokens.weight has {ROWS + 1}" in message
    state["lm_head.weight"][ROWS, 3] = torch.nan
    save_file(state, full / "model.safetensors")
    with pytest.raises(UserError, match=rf"lm_head\.weight holds NaN or infinite values beyond row {ROWS - 1}"):
        run([full], base, out, extra_rows="keep")


def tokenizer(folder: Path, *, vocabulary: Any, added: dict[str, int]) -> None:
    tokens = [{"id": place, "content": token} for token, place in added.items()]
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": tokens}))


@pytest.mark.parametrize("unigram", [False, True])
def test_rows_of_different_tokens_are_not_averaged(unigram: bool, base: Path, tmp_path: Path) -> None:
    experts = [saved(resized(load(base), ROWS + 1), tmp_path / name) for name in "ab"]
    words = [f"w{place}" for place in range(ROWS)]
    vocabularies = [[*words, "<pad>"], [*words, "<end>"]] if unigram else [words, words]
    for expert, vocabulary, token in zip(experts, vocabularies, ("<pad>", "<end>"), strict=True):
        scored = [[word, -1.0] for word in vocabulary] if unigram else {word: i for i, word in enumerate(vocabulary)}
        tokenizer(expert, vocabulary=scored, added={} if unigram else {token: ROWS})
    message = refusal(experts, base, tmp_path / "out", extra_rows="keep")
    assert f"token {ROWS} is '<pad>' in expert a and '<end>' in expert b" in message
    run(experts, base, tmp_path / "out", extra_rows="drop")
    (experts[1] / "tokenizer.json").write_text((experts[0] / "tokenizer.json").read_text())
    run(experts, base, tmp_path / "out", extra_rows="keep")


@pytest.mark.parametrize("file", ["added_tokens.json", "tokenizer_config.json"])
def test_nor_are_those_of_tokens_that_another_file_names(file: str, base: Path, tmp_path: Path) -> None:
    experts = [saved(resized(load(base), ROWS + 1), tmp_path / name) for name in "ab"]
    for expert, token in zip(experts, ("<pad>", "<end>"), strict=True):
        decoder = {"added_tokens_decoder": {str(ROWS): {"content": token}}}
        (expert / file).write_text(json.dumps({token: ROWS} if file == "added_tokens.json" else decoder))
    message = refusal(experts, base, tmp_path / "out", extra_rows="keep")
    assert f"token {ROWS} is '<pad>' in expert a and '<end>' in expert b" in message
    shutil.copyfile(experts[0] / file, experts[1] / file)
    run(experts, base, tmp_path / "out", extra_rows="keep")


def test_a_dry_run_says_what_becomes_of_rows_and_how_large_the_checkpoint_is(base: Path, tmp_path: Path) -> None:
    expert, out = saved(resized(load(base), ROWS + 2), tmp_path / "a"), tmp_path / "out"
    would_be = Preview(**run([expert], base, out, extra_rows="keep", dry_run=True))
    line = "vocabulary: a has 42 rows, 2 beyond the base's kept, as the mean over the experts that have the row"
    assert line in would_be.lines(1)
    run([expert], base, out, extra_rows="keep")
    assert would_be.written == sum(4 * tensor.numel() for tensor in read(out).values())


def test_data_are_of_the_rows_of_the_base(base: Path, tmp_path: Path) -> None:
    expert = saved(resized(load(base), ROWS + 2), tmp_path / "a")
    save_file({"x": torch.zeros(1)}, tmp_path / "fisher.safetensors")
    measured = {"a": tmp_path / "fisher.safetensors"}
    message = refusal([expert], base, tmp_path / "out", method="fisher", statistics=measured, extra_rows="drop")
    assert message.endswith("for which data are measured; choose a method that needs none")


@pytest.mark.parametrize("held", [0, 1, 4, 6])
@pytest.mark.parametrize("rows", [slice(0, 7), slice(0, 3), slice(2, 6), slice(5, 7), slice(None, None, 2)])
def test_filled_rows_are_those_of_the_whole(held: int, rows: slice) -> None:
    base, weights = torch.arange(14.0).view(7, 2), -torch.arange(2.0 * held).view(held, 2)
    whole = torch.cat([weights, base[held:]])
    filled = fitted(weights, base)
    assert isinstance(filled, Filled)
    assert filled[rows].equal(whole[rows])
    assert isinstance(fitted(base, base), torch.Tensor)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_rows_of_added_tokens_that_were_trained_alone(whole: bool, tied: bool, tmp_path: Path) -> None:
    base = saved(moved(llama(tied=tied), 1), tmp_path / "base")
    model = resized(load(base), ROWS + 2)
    config = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[5, ROWS, ROWS + 1])
    adapted = moved_where_trained(get_peft_model(model, config))
    adapted.save_pretrained(str(tmp_path / "a"), save_embedding_layers=whole)
    expert = tmp_path / "a"
    merged = adapted.merge_and_unload()
    refused = refusal([expert], base, tmp_path / "refused")
    assert "--extra-rows drop leaves out rows beyond the base's" in refused
    run([expert], base, tmp_path / "drop", extra_rows="drop")
    cut = logits(load(tmp_path / "drop"))
    torch.testing.assert_close(cut, logits(merged)[..., :ROWS], rtol=1e-5, atol=1e-6)
    # Of a tied base all added rows were trained, and the file has them.
    if whole or tied:
        run([expert], base, tmp_path / "keep", extra_rows="keep")
        kept = logits(load(tmp_path / "keep"), ROWS + 2)
        torch.testing.assert_close(kept, logits(merged, ROWS + 2), rtol=1e-5, atol=1e-6)
    else:
        refused = refusal([expert], base, tmp_path / "keep", extra_rows="keep")
        assert f"does not hold the rows of lm_head.weight beyond the base's {ROWS}" in refused


def moved_where_trained(model: Any) -> Any:
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model
