"""Rows of an embedding or a head that were trained alone (``trainable_token_indices``): exact against PEFT."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from mergetime.artifacts.apply import applied
from mergetime.artifacts.rows import Replaced
from mergetime.core.errors import UserError
from tests.unit.test_merging_embeddings import (
    HEAD,
    TABLE,
    assert_close,
    base_at,
    load,
    logits,
    refusal,
    run,
    with_adapter,
)
from tests.unit.test_merging_embeddings import adapter as saved

KINDS: dict[str, dict[str, Any]] = {
    "list": {"trainable_token_indices": [3, 17]},
    "embedding": {"trainable_token_indices": {"embed_tokens": [17, 3]}},
    "head": {"trainable_token_indices": {"lm_head": [3, 7]}},
    "both": {"trainable_token_indices": {"embed_tokens": [3, 7], "lm_head": [3, 7]}},
    "both_in_turn": {"trainable_token_indices": {"embed_tokens": [3, 7], "lm_head": [7, 3]}},
    "beside_factors": {"trainable_token_indices": [3, 7], "target_modules": ["q_proj", "lm_head"]},
    "beside_whole": {"trainable_token_indices": {"lm_head": [3]}, "modules_to_save": ["embed_tokens"]},
}
KEY = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"


def adapter(base: Path, folder: Path, seed: int, **config: Any) -> Path:
    return saved(base, folder, seed, **{"target_modules": ["q_proj"], **config})


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_at(tmp_path_factory.mktemp("bases") / "base", tied=request.param)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_at(tmp_path_factory.mktemp("bases") / "untied", tied=False)


@pytest.mark.parametrize("kind", KINDS)
def test_the_merge_is_what_the_adapter_computes(kind: str, base: Path, tmp_path: Path) -> None:
    expert = adapter(base, tmp_path / "a", 1, **KINDS[kind])
    wanted = logits(with_adapter(base, expert))
    assert float((logits(load(base)) - wanted).abs().max()) > 0.1
    assert_close(logits(load(run([expert], tmp_path / "out", base, output="checkpoint"))), wanted)
    loaded = load(base)
    with applied(loaded, expert):
        assert_close(logits(loaded), wanted)
    assert_close(logits(loaded), logits(load(base)))


def test_a_mean_moves_the_rows_of_each(base: Path, tmp_path: Path) -> None:
    experts = [
        adapter(base, tmp_path / "a", 1, trainable_token_indices=[3, 17]),
        adapter(base, tmp_path / "b", 2, trainable_token_indices=[17, 20]),
    ]
    before = load(base).state_dict()
    merged = [with_adapter(base, expert).merge_and_unload().state_dict() for expert in experts]
    after = load(run(experts, tmp_path / "out", base, output="checkpoint")).state_dict()
    delta = load_file(run(experts, tmp_path / "delta", base, output="delta") / "task_vector.safetensors")
    for name, tensor in before.items():
        mean = (merged[0][name] + merged[1][name]) / 2
        torch.testing.assert_close(after[name], mean, rtol=1e-5, atol=1e-6)
        if name in delta:
            torch.testing.assert_close(delta[name], mean - tensor, rtol=1e-5, atol=1e-6)
    moved = (after[TABLE] != before[TABLE]).any(dim=1).nonzero().flatten().tolist()
    assert moved == [3, 17, 20]


def test_an_expert_that_moves_a_head_apart_leaves_the_tie_of_others(tmp_path: Path) -> None:
    base = base_at(tmp_path / "base", tied=True)
    tokens = adapter(base, tmp_path / "a", 1, trainable_token_indices=[3])
    head = adapter(base, tmp_path / "b", 2, target_modules=["lm_head"])
    run([tokens, head], tmp_path / "out", base, output="checkpoint")
    written, table = load_file(tmp_path / "out" / "model.safetensors"), load(base).state_dict()[TABLE]
    row = load_file(tokens / "adapter_model.safetensors")[KEY][0]
    factors = load_file(head / "adapter_model.safetensors")
    update = 2 * factors["base_model.model.lm_head.lora_B.weight"] @ factors["base_model.model.lm_head.lora_A.weight"]
    replaced = table.index_copy(0, torch.tensor([3]), row[None])
    torch.testing.assert_close(written[TABLE], (table + replaced) / 2)
    torch.testing.assert_close(written[HEAD], (replaced + table + update) / 2, rtol=1e-5, atol=1e-6)


def test_the_same_numbers_for_other_tokens_are_other_rows(tmp_path: Path) -> None:
    base = base_at(tmp_path / "base", tied=True)
    expert = adapter(base, tmp_path / "a", 1, **KINDS["both_in_turn"])
    weights = load_file(expert / "adapter_model.safetensors")
    weights["base_model.model.lm_head.token_adapter.trainable_tokens_delta"] = weights[KEY].clone()
    save_file(weights, expert / "adapter_model.safetensors", metadata={"format": "pt"})
    wanted = logits(with_adapter(base, expert))
    assert_close(logits(load(run([expert], tmp_path / "out", base, output="checkpoint"))), wanted)


@pytest.mark.parametrize("setting", [[3, 7], {"embed_tokens": [3, 7]}])
def test_copies_of_the_base_beside_trained_rows_do_not_count(setting: Any, base: Path, tmp_path: Path) -> None:
    model = get_peft_model(load(base), LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=setting))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1)
    model.save_pretrained(str(tmp_path / "a"), save_embedding_layers=True)
    copy = "base_model.model.model.embed_tokens.token_adapter.base_layer.weight"
    assert copy in load_file(tmp_path / "a" / "adapter_model.safetensors")
    out = run([tmp_path / "a"], tmp_path / "out", base, output="checkpoint")
    assert_close(logits(load(out)), logits(model))


@pytest.mark.parametrize("method", ["ties", "della", "tsv_merge", "knots", "model_stock"])
def test_methods_of_every_level_merge_rows(method: str, untied: Path, tmp_path: Path) -> None:
    experts = [adapter(untied, tmp_path / name, seed, **KINDS["list"]) for seed, name in enumerate("ab")]
    out = run(experts, tmp_path / "out", untied, method, output="checkpoint")
    moved = (load_file(out / "model.safetensors")[TABLE] != load(untied).state_dict()[TABLE]).any(dim=1)
    assert moved.nonzero().flatten().tolist() == [3, 17]


def test_rows_are_replaced_whichever_are_asked_for() -> None:
    table = torch.arange(20.0, dtype=torch.bfloat16).reshape(10, 2)
    rows = Replaced(table, torch.tensor([7, 2]), torch.tensor([[-1.0, -2.0], [-3.0, -4.0]]))
    whole = table.float()
    whole[7], whole[2] = torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -4.0])
    for chosen in (slice(None), slice(2, 3), slice(3, 7), slice(5, 10), slice(None, None, 7), slice(1, None, 3)):
        assert rows[chosen].equal(whole[chosen])
    assert table.equal(torch.arange(20.0, dtype=torch.bfloat16).reshape(10, 2))
    assert len(rows) == 10


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ([3], "trainable_token_indices of its adapter_config.json lists 1 tokens; save it again"),
        (None, "trainable_token_indices of its adapter_config.json lists 0 tokens; save it again"),
        ({"wte": [3, 17]}, "lacks the rows of wte that trainable_token_indices of its adapter_config.json names"),
        ({"embed_tokens": [3, 17], "lm_head": [3]}, "lacks the rows of lm_head that trainable_token_indices of its"),
        ([0, 0], "trainable_token_indices names token 0 twice, and only one row of it counts; drop one"),
        ([3, 40], f"trained row 40 of {TABLE}, of which the base has 40 (from 0)"),
        ([3, -1], "trainable_token_indices of adapter_config.json are not lists of numbers of tokens"),
        ([3, True], "trainable_token_indices of adapter_config.json are not lists of numbers of tokens"),
        ({"embed_tokens": 3}, "trainable_token_indices of adapter_config.json are not lists of numbers of tokens"),
        ("3", "trainable_token_indices of adapter_config.json are not lists of numbers of tokens"),
    ],
)
def test_rows_that_do_not_fit_are_refused(setting: Any, words: str, untied: Path, tmp_path: Path) -> None:
    expert = adapter(untied, tmp_path / "a", 1, **KINDS["list"])
    file = expert / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"trainable_token_indices": setting}))
    message = refusal([expert], tmp_path / "out", untied)
    assert message.startswith(f"expert a ({expert}): ")
    assert words in message


def test_what_rows_cannot_go_with_is_refused(untied: Path, tmp_path: Path) -> None:
    expert = adapter(untied, tmp_path / "a", 1, **KINDS["list"])
    words = f"expert a ({expert}): trained rows of {TABLE}"
    assert (
        refusal([expert], tmp_path / "out", untied, output="adapter")
        == f"{words}, which a merged adapter does not hold; use --output delta or checkpoint"
    )
    assert (
        refusal([expert], tmp_path / "out", None)
        == f"{words}, which is merged as an update of the base; give --base its folder"
    )
    weights = load_file(expert / "adapter_model.safetensors")
    for changed, said in (
        ({name: tensor for name, tensor in weights.items() if name != KEY}, "lacks the rows that trainable_token"),
        (weights | {KEY: torch.ones(2, 5)}, f"trained rows of {TABLE} with 5 numbers, in the base it is 40x16"),
        (weights | {f"base_model.model.{TABLE}": torch.ones(40, 16)}, f"trained rows of {TABLE} and more of it"),
    ):
        save_file(changed, expert / "adapter_model.safetensors", metadata={"format": "pt"})
        assert said in refusal([expert], tmp_path / "out", untied)
    save_file(weights | {KEY: torch.full((2, 16), torch.nan)}, expert / "adapter_model.safetensors")
    with pytest.raises(UserError, match=f"{KEY} holds NaN or infinite values"):
        run([expert], tmp_path / "out", untied)
