"""Adapters with whole tensors beside LoRA factors: exact against PEFT where they were trained, left out where not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from mergetime.core.errors import UserError
from mergetime.merging import registry
from mergetime.merging.engine import merge

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
IN_FILE = "base_model.model."


def base_at(folder: Path, *, tied: bool) -> Path:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 40}
    Qwen3ForCausalLM(Qwen3Config(**sizes, **heads, tie_word_embeddings=tied)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_at(tmp_path_factory.mktemp("whole") / "base", tied=False)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_at(tmp_path_factory.mktemp("whole") / "tied", tied=True)


def adapter(base: Path, folder: Path, seed: int, *, save_embeddings: bool | str = False, **config: Any) -> Path:
    """An adapter as PEFT saves it, with all that is trained moved at random."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], **config}
    model = get_peft_model(Qwen3ForCausalLM.from_pretrained(base), LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data + 0.1 * torch.randn(parameter.shape, generator=generator)
            assert "lora_" in name or "modules_to_save" in name
    model.save_pretrained(str(folder), save_embedding_layers=save_embeddings)
    return folder


def run(experts: list[Path], out: Path, base: Path | None, method: str = "simple_average", **given: Any) -> Any:
    pool = [(folder.name, folder) for folder in experts]
    return merge(pool, method=method, params={}, space="delta", seed=1, base=base, out=out, **given)


def refusal(experts: list[Path], out: Path, base: Path | None, method: str = "simple_average", **given: Any) -> str:
    with pytest.raises(UserError) as refused:
        run(experts, out, base, method, **given)
    assert not out.exists()
    return str(refused.value)


def merged_by_peft(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    model = PeftModel.from_pretrained(Qwen3ForCausalLM.from_pretrained(base), str(folder))
    weights: dict[str, torch.Tensor] = model.merge_and_unload().state_dict()
    return weights


@pytest.mark.parametrize(
    "config",
    [
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["norm"]},
        {"modules_to_save": ["embed_tokens"], "save_embeddings": True},
    ],
)
def test_tensors_that_were_trained_whole_merge_as_peft_merges_them(
    config: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    expert = adapter(base, tmp_path / "a", 1, **config)
    run([expert], tmp_path / "out", base, output="checkpoint")
    written, wanted = load_file(tmp_path / "out" / "model.safetensors"), merged_by_peft(base, expert)
    assert written.keys() == wanted.keys()
    moved = [name for name, tensor in load_file(base / "model.safetensors").items() if not tensor.equal(written[name])]
    assert {name for name in moved if "proj" not in name}
    for name, tensor in written.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-6)


def test_an_expert_without_a_whole_tensor_leaves_it_as_it_is(base: Path, tmp_path: Path) -> None:
    experts = [adapter(base, tmp_path / "a", 1, modules_to_save=["lm_head"]), adapter(base, tmp_path / "b", 2)]
    run(experts, tmp_path / "out", base, output="delta")
    head = load_file(experts[0] / "adapter_model.safetensors")[f"{IN_FILE}{HEAD}"]
    moved = head - load_file(base / "model.safetensors")[HEAD]
    torch.testing.assert_close(load_file(tmp_path / "out" / "task_vector.safetensors")[HEAD], moved / 2)


@pytest.mark.parametrize("tie", [False, True])
def test_embeddings_that_nobody_asked_for_do_not_count_where_they_are_the_bases(
    tie: bool, base: Path, tied: Path, tmp_path: Path
) -> None:
    of_base = tied if tie else base
    plain = adapter(of_base, tmp_path / "plain" / "a", 1)
    beside = adapter(of_base, tmp_path / "beside" / "a", 1, save_embeddings=True)
    assert f"{IN_FILE}{TABLE}" in load_file(beside / "adapter_model.safetensors")
    for folder in (plain, beside):
        run([folder], tmp_path / f"out_{folder.parent.name}", of_base)
    files = [tmp_path / f"out_{name}" / "adapter_model.safetensors" for name in ("plain", "beside")]
    assert files[0].read_bytes() == files[1].read_bytes()
    message = refusal([beside], tmp_path / "without", None)
    assert message.startswith(f"expert a ({beside}): {IN_FILE}")
    assert "is a whole tensor, which may be the base's or trained" in message


def test_the_bases_weight_that_peft_keeps_beside_factors_does_not_count(base: Path, tmp_path: Path) -> None:
    expert = adapter(base, tmp_path / "a", 1, target_modules=["q_proj", "lm_head"], save_embeddings=True)
    key = f"{IN_FILE}lm_head.base_layer.weight"
    weights = load_file(expert / "adapter_model.safetensors")
    assert key in weights
    run([expert], tmp_path / "out", base, output="checkpoint")
    written, wanted = load_file(tmp_path / "out" / "model.safetensors"), merged_by_peft(base, expert)
    for name, tensor in written.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-6)
    run([expert], tmp_path / "alone", None)
    weights[key] = weights[key] + 1
    save_file(weights, expert / "adapter_model.safetensors", metadata={"format": "pt"})
    message = refusal([expert], tmp_path / "other", base)
    assert message == f"expert a ({expert}): {key} is not the base's {HEAD}; it was trained on another base"


def edited(folder: Path, **tensors: torch.Tensor) -> Path:
    weights = load_file(folder / "adapter_model.safetensors")
    weights |= {f"{IN_FILE}{name.replace('__', '.')}": tensor for name, tensor in tensors.items()}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def test_whole_tensors_that_do_not_fit_are_refused(base: Path, tmp_path: Path) -> None:
    larger = edited(adapter(base, tmp_path / "larger", 1), lm_head__weight=torch.zeros(42, 16))
    assert f"{IN_FILE}{HEAD} is 42x16, in the base it is 40x16" in refusal([larger], tmp_path / "out", base)
    other = edited(adapter(base, tmp_path / "other", 1), score__weight=torch.zeros(2, 16))
    assert f"{IN_FILE}score.weight is 2x16, in the base there is none" in refusal([other], tmp_path / "out", base)
    both = adapter(base, tmp_path / "both", 1, target_modules=["lm_head"])
    edited(both, lm_head__weight=torch.zeros(40, 16))
    assert "was trained whole and has LoRA factors" in refusal([both], tmp_path / "out", base)
    wild = edited(adapter(base, tmp_path / "wild", 1), lm_head__weight=torch.full((40, 16), torch.nan))
    assert f"{IN_FILE}{HEAD} holds NaN or infinite values" in refusal([wild], tmp_path / "out", base)


def test_a_whole_tensor_and_factors_of_another_expert_are_averaged(base: Path, tmp_path: Path) -> None:
    factors = adapter(base, tmp_path / "factors", 2, target_modules=["lm_head"])
    whole = adapter(base, tmp_path / "whole", 1, modules_to_save=["lm_head"])
    run([factors, whole], tmp_path / "out", base, output="checkpoint")
    mean = (merged_by_peft(base, factors)[HEAD] + merged_by_peft(base, whole)[HEAD]) / 2
    torch.testing.assert_close(load_file(tmp_path / "out" / "model.safetensors")[HEAD], mean, rtol=1e-5, atol=1e-6)


def test_no_adapter_holds_what_was_trained_whole(base: Path, tmp_path: Path) -> None:
    expert = adapter(base, tmp_path / "a", 1, modules_to_save=["lm_head"])
    message = refusal([expert], tmp_path / "out", base, output="adapter")
    assert (
        message
        == f"expert a ({expert}): trained {HEAD} whole, which a merged adapter does not hold; use --output delta or checkpoint"
    )
    with pytest.raises(UserError, match=r"trained lm_head\.weight whole, which adapter space cannot merge"):
        merge([("a", expert)], method="ties", params={}, space="adapter", seed=1, base=base, out=tmp_path / "out")


WITHOUT_DATA = [name for name in registry.names() if not registry.get(name).statistics]


@pytest.mark.parametrize("method", WITHOUT_DATA)
def test_every_method_merges_whole_tensors_beside_factors(method: str, base: Path, tmp_path: Path) -> None:
    experts = [adapter(base, tmp_path / name, seed, modules_to_save=["lm_head"]) for seed, name in enumerate("ab")]
    run(experts, tmp_path / "out", base, method, output="checkpoint")
    written, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", base))
    assert not written[HEAD].equal(before[HEAD])
    assert written[TABLE].equal(before[TABLE])


@pytest.mark.parametrize(("key", "value"), [("use_everything", True), ("new_scaling", 2.0), ("kinds", ["a"])])
def test_a_setting_that_nothing_is_known_of_is_refused(key: str, value: Any, base: Path, tmp_path: Path) -> None:
    expert = adapter(base, tmp_path / "a", 1)
    config = json.loads((expert / "adapter_config.json").read_text())
    (expert / "adapter_config.json").write_text(json.dumps(config | {key: value}))
    assert f"adapter_config.json sets {key}, which nothing is known of here" in refusal(
        [expert], tmp_path / "out", None
    )
    (expert / "adapter_config.json").write_text(json.dumps(config | dict.fromkeys([key])))
    run([expert], tmp_path / "out", None)
