"""Full checkpoints in and out: shards, dtypes, reported errors, the three outputs against each other, and refusals."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from mergetime.architectures.files import files
from mergetime.artifacts.apply import applied
from mergetime.artifacts.vocabulary import difference
from mergetime.core.errors import UserError
from mergetime.merging import outputs, pool
from mergetime.merging.engine import merge
from mergetime.merging.preview import Preview

State = dict[str, torch.Tensor]
Experts = list[tuple[str, Path]]
SCRIPTS = Path(__file__).parents[2] / "scripts"
NAMES = ("code", "math", "safety")
UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"
TABLE = "model.embed_tokens.weight"
SHAPES = {TABLE: (12, 6), UP: (8, 6), "model.layers.0.mlp.down_proj.weight": (6, 8), NORM: (6,)}
MODEL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": True,
}
# One of every level, and those that rank or vote over the whole model, or the base's weights, before they merge.
LEVELS: list[tuple[str, dict[str, Any]]] = [
    ("simple_average", {}),
    ("model_stock", {}),
    ("ties", {}),
    ("breadcrumbs", {"preset": "authors"}),
    ("dare_ties", {}),
    ("dare", {"preset": "mergekit"}),
    ("tsv_merge", {}),
    ("subspace_boosting_ties", {}),
    ("ties", {"preset": "mergebench"}),
    ("localize_and_stitch", {}),
    ("consensus_task_arithmetic", {}),
]


def run(experts: Experts, out: Path, method: str = "ties", **given: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"params": {}, "space": "delta", "seed": 1, **given}
    return merge(experts, method=method, out=out, **settings)


def noise(state: State, seed: int, size: float) -> State:
    """The state with random numbers added, in its dtypes."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (tensor.float() + size * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        for name, tensor in state.items()
    }


def write(folder: Path, state: State, **config: Any) -> Path:
    """A checkpoint's folder with only what a merge reads."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"model_type": "llama", "tie_word_embeddings": True, "dtype": "float32", **config}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def read(folder: Path) -> State:
    """All tensors of a checkpoint, in one file or in shards."""
    merged: State = {}
    for path in sorted(folder.glob("*.safetensors")):
        merged |= load_file(path)
    return merged


def edit(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors of a checkpoint (dots written as __), or drop them where None is given."""
    path = folder / "model.safetensors"
    state = load_file(path)
    for key, tensor in changes.items():
        state.pop(key.replace("__", "."), None)
        if tensor is not None:
            state[key.replace("__", ".")] = tensor
    save_file(state, path, metadata={"format": "pt"})


def configure(folder: Path, **changes: Any) -> None:
    """Change settings of a checkpoint's config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path / "base", noise({name: torch.zeros(shape) for name, shape in SHAPES.items()}, 9, 1.0))


@pytest.fixture
def experts(tmp_path: Path, base: Path) -> Experts:
    return [(name, write(tmp_path / name, noise(read(base), seed, 0.05))) for seed, name in enumerate(NAMES)]


def refusal(experts: Experts, out: Path, method: str = "ties", **given: Any) -> str:
    """The message of a merge that must fail and must leave no file."""
    with pytest.raises((UserError, ValueError)) as caught:
        run(experts, out, method, **given)
    assert not out.exists() or not list(out.iterdir())
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def model_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 whose tensors are all random."""
    folder = tmp_path_factory.mktemp("qwen3") / "base"
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**MODEL)).save_pretrained(folder)
    save_file(noise(read(folder), 1, 0.05), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def model_experts(model_base: Path) -> Experts:
    found = []
    for seed, name in enumerate(NAMES):
        folder = model_base.parent / name
        shutil.copytree(model_base, folder)
        save_file(noise(read(model_base), 10 + seed, 0.01), folder / "model.safetensors", metadata={"format": "pt"})
        found.append((name, folder))
    return found


@pytest.fixture(scope="module")
def model_adapters(model_base: Path) -> Experts:
    """Adapters of PEFT on attention and MLP, rank 4."""
    found = []
    for seed, name in enumerate(NAMES):
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"])
        model = get_peft_model(load(model_base), config)
        generator = torch.Generator().manual_seed(seed)
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(str(model_base.parent / f"{name}_adapter"))
        found.append((name, model_base.parent / f"{name}_adapter"))
    return found


def load(folder: Path, **given: Any) -> Any:
    """The model as transformers loads it, which must find every tensor it has and no other."""
    loaded: Any = Qwen3ForCausalLM.from_pretrained(folder, output_loading_info=True, **given)
    model, info = loaded
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=torch.arange(2, 30).view(2, 14)).logits.float()
    return found


def shard(folder: Path, out: Path, **given: Any) -> Path:
    """The same checkpoint in shards, by transformers."""
    load(folder, **given).save_pretrained(out, max_shard_size="12KB")
    assert len(list(out.glob("*.safetensors"))) > 3
    return out


def same(one: State, two: State) -> bool:
    return one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parametrize("method", ["simple_average", "ties", "tsv_merge", "model_stock"])
def test_shards_in_give_what_a_single_file_gives(
    model_base: Path, model_experts: Experts, tmp_path: Path, method: str
) -> None:
    sharded = [
        ("math", model_experts[1][1]),
        *((name, shard(path, tmp_path / name)) for name, path in model_experts[::2]),
    ]
    for number, own in enumerate((model_base, shard(model_base, tmp_path / "base"))):
        run(model_experts, tmp_path / f"whole{number}", method, base=own, output="checkpoint")
        run(sharded, tmp_path / f"shards{number}", method, base=own, output="checkpoint")
    found = [read(tmp_path / name) for name in ("whole0", "shards0", "whole1", "shards1")]
    assert all(same(found[0], other) for other in found[1:])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shards_out_load_in_transformers_and_equal_the_single_file(
    model_base: Path, model_experts: Experts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    given: dict[str, Any] = {"base": model_base, "output": "checkpoint", "dtype": dtype}
    single = run(model_experts, tmp_path / "single", **given)
    monkeypatch.setattr(outputs, "SHARD", 12_000)
    sharded = run(model_experts, tmp_path / "sharded", **given, threads=3)
    shards = sorted(path.name for path in (tmp_path / "sharded").glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {key: name for name in shards for key in load_file(tmp_path / "sharded" / name)}
    assert same(read(tmp_path / "single"), read(tmp_path / "sharded"))
    assert same(load(tmp_path / "sharded").state_dict(), load(tmp_path / "single").state_dict())
    differing = ("seconds",)
    assert {key: own for key, own in single.items() if key not in differing} == {
        key: own for key, own in sharded.items() if key not in differing
    }


def test_a_merge_of_another_number_of_files_leaves_none_of_the_old_behind(
    model_base: Path, model_experts: Experts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    given = {"base": model_base, "output": "checkpoint"}
    for size, method in (
        (outputs.SHARD, "ties"),
        (12_000, "simple_average"),
        (20_000, "ties"),
        (outputs.SHARD, "ties"),
    ):
        monkeypatch.setattr(outputs, "SHARD", size)
        run(model_experts, out, method, **given)
        (out / "merged.json").write_text("{}")
        run(model_experts, tmp_path / f"fresh{size}", method, **given)
        wanted = [path.name for path in (tmp_path / f"fresh{size}").iterdir()]
        assert sorted(path.name for path in out.iterdir()) == sorted([*wanted, "merged.json"])
        assert same(load(out).state_dict(), load(tmp_path / f"fresh{size}").state_dict())
        shutil.rmtree(tmp_path / f"fresh{size}")


def test_a_merge_of_another_form_takes_the_place_of_the_old_one(
    model_base: Path, model_adapters: Experts, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    weights = {
        "checkpoint": ["model.safetensors"],
        "delta": ["task_vector.safetensors"],
        "adapter": ["adapter_model.safetensors"],
    }
    for form in ("checkpoint", "delta", "adapter", "checkpoint", "adapter"):
        run(model_adapters, out, "simple_average", base=model_base, output=form)
        (out / "merged.json").write_text("{}")
        assert [path.name for path in out.glob("*.safetensors")] == weights[form]
        assert (out / "config.json").exists() == (form == "checkpoint")
        assert (out / "adapter_config.json").exists() == (form == "adapter")


def by_hand(base: State, experts: list[State]) -> State:
    """The base plus the mean task vector, in fp32."""
    updates = {name: torch.stack([own[name].float() - base[name].float() for own in experts]) for name in base}
    return {name: base[name].float() + update.mean(dim=0) for name, update in updates.items()}


def test_16_bit_norms_among_32_bit_matrices(base: Path, experts: Experts, tmp_path: Path) -> None:
    for folder in (base, *(folder for _, folder in experts)):
        edit(folder, **{NORM.replace(".", "__"): read(folder)[NORM].bfloat16()})
    run(experts, tmp_path / "out", "simple_average", base=base, output="checkpoint")
    found = read(tmp_path / "out")
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    for name, tensor in by_hand(read(base), [read(folder) for _, folder in experts]).items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_an_expert_of_another_dtype_than_the_base(
    base: Path, experts: Experts, tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = experts[1][1]
    write(folder, {name: tensor.to(dtype) for name, tensor in read(folder).items()})
    run(experts, tmp_path / "out", "simple_average", base=base, output="checkpoint")
    found = read(tmp_path / "out")
    for name, tensor in by_hand(read(base), [read(folder) for _, folder in experts]).items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["simple_average", "ties", "tsv_merge"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_error_of_16_bits_is_reported_and_that_of_32_is_none(
    base: Path, experts: Experts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, dtype: str
) -> None:
    monkeypatch.setitem(pool.BLOCK, "cpu", 12)  # Errors add up over blocks.
    exact = run(experts, tmp_path / "exact", method, base=base, output="checkpoint")
    assert exact["relative_error"] == 0
    rounded = run(experts, tmp_path / "rounded", method, base=base, output="checkpoint", dtype=dtype)
    before, wanted, found = (read(folder) for folder in (base, tmp_path / "exact", tmp_path / "rounded"))
    assert {tensor.dtype for tensor in found.values()} == {getattr(torch, dtype)}
    lost = torch.cat([(found[name].double() - wanted[name].double()).flatten() for name in before])
    moved = torch.cat([(wanted[name].double() - before[name].double()).flatten() for name in before])
    assert rounded["relative_error"] == pytest.approx(float(lost.norm() / moved.norm()), rel=1e-4)
    assert 1e-4 < rounded["relative_error"] < 0.2
    assert rounded["merged_norm"] == exact["merged_norm"]


@pytest.mark.parametrize("method", ["simple_average", "ties"])
def test_the_error_of_a_16_bit_task_vector_is_reported(
    base: Path, experts: Experts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setitem(pool.BLOCK, "cpu", 12)  # Errors add up over blocks.
    summary = run(experts, tmp_path / "rounded", method, base=base, dtype="bfloat16")
    assert run(experts, tmp_path / "exact", method, base=base)["relative_error"] == 0
    rounded, exact = (load_file(tmp_path / name / "task_vector.safetensors") for name in ("rounded", "exact"))
    lost = torch.cat([(rounded[name].double() - exact[name].double()).flatten() for name in exact])
    whole = torch.cat([tensor.double().flatten() for tensor in exact.values()])
    assert summary["relative_error"] == pytest.approx(float(lost.norm() / whole.norm()), rel=1e-4)


@pytest.mark.parametrize("method", ["simple_average", "tsv_merge", "model_stock", "knots"])
def test_adapter_task_vector_and_checkpoint_are_one_model(
    model_base: Path, model_adapters: Experts, tmp_path: Path, method: str
) -> None:
    before = logits(load(model_base))
    for form in ("adapter", "delta", "checkpoint"):
        run(model_adapters, tmp_path / form, method, base=model_base, output=form)
    with_adapter = logits(PeftModel.from_pretrained(load(model_base), tmp_path / "adapter").eval())
    model = load(model_base)
    with applied(model, tmp_path / "delta"):
        with_delta = logits(model)
    with applied(model, tmp_path / "adapter"):
        with_factors = logits(model)
    assert torch.equal(logits(model), before)
    whole = logits(load(tmp_path / "checkpoint"))
    assert float((whole - before).abs().max()) > 0.01
    for other in (with_adapter, with_delta, with_factors):
        torch.testing.assert_close(other, whole, rtol=0, atol=1e-4)
    summary = run(model_adapters, tmp_path / "16", method, base=model_base, output="checkpoint", dtype="bfloat16")
    deviation = (logits(load(tmp_path / "16", dtype=torch.float32)) - whole).abs().max()
    assert 0 < float(deviation) < 1
    assert 0 < summary["relative_error"] < 1


def test_a_full_merge_as_task_vector_and_as_checkpoint_are_one_model(
    model_base: Path, model_experts: Experts, tmp_path: Path
) -> None:
    for form in ("delta", "checkpoint"):
        run(model_experts, tmp_path / form, base=model_base, output=form)
    model = load(model_base)
    with applied(model, tmp_path / "delta"):
        found = logits(model)
    torch.testing.assert_close(found, logits(load(tmp_path / "checkpoint")), rtol=0, atol=1e-4)


def products(folder: Path) -> State:
    """B A of an adapter with scaling 1, by module."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"]
    assert config["rank_pattern"] == config["alpha_pattern"]
    factors = load_file(folder / "adapter_model.safetensors")
    keys = [key for key in factors if ".lora_A." in key]
    return {
        key.removeprefix("base_model.model.").replace(".lora_A", ""): factors[key.replace("lora_A", "lora_B")].double()
        @ factors[key].double()
        for key in keys
    }


def distance(one: State, two: State) -> float:
    """||one - two|| / ||two|| over all tensors."""
    assert one.keys() == two.keys()
    lost = torch.cat([(one[name].double() - two[name].double()).flatten() for name in one])
    return float(lost.norm() / torch.cat([tensor.double().flatten() for tensor in two.values()]).norm())


def truncation_error(state: State, rank: int) -> float:
    """What the best approximation of every matrix at this rank misses, by a full SVD."""
    values = [torch.linalg.svdvals(tensor.double()) for tensor in state.values()]
    missed = sum(float(own[rank:].square().sum()) for own in values)
    return math.sqrt(missed / sum(float(own.square().sum()) for own in values))


@pytest.mark.parametrize("rank", [1, 5, 11])
@pytest.mark.parametrize("method", ["simple_average", "tsv_merge", "knots"])
def test_a_truncated_adapter_reports_the_error_of_the_best_one(
    model_base: Path, model_adapters: Experts, tmp_path: Path, method: str, rank: int
) -> None:
    run(model_adapters, tmp_path / "whole", method, base=model_base, output="delta")
    summary = run(model_adapters, tmp_path / "out", method, rank=rank)
    wanted, found = load_file(tmp_path / "whole" / "task_vector.safetensors"), products(tmp_path / "out")
    assert summary["output"] == "adapter"
    assert summary["relative_error"] == pytest.approx(truncation_error(wanted, rank), rel=1e-4)
    assert summary["relative_error"] == pytest.approx(distance(found, wanted), rel=1e-4)
    assert 0.01 < summary["relative_error"] < 1
    for factor in load_file(tmp_path / "out" / "adapter_model.safetensors").values():
        assert min(factor.shape) == rank


def test_a_rank_that_holds_everything_costs_nothing(model_adapters: Experts, tmp_path: Path) -> None:
    summary = run(model_adapters, tmp_path / "out", "simple_average", rank=64)
    assert summary["relative_error"] == 0
    run(model_adapters, tmp_path / "whole", "simple_average", output="delta")
    assert distance(products(tmp_path / "out"), load_file(tmp_path / "whole" / "task_vector.safetensors")) < 1e-6


@pytest.mark.parametrize("rank", [1, 4, 12, 20])
@pytest.mark.parametrize("method", ["ties", "dare_ties", "consensus_task_arithmetic"])
def test_an_adapter_of_a_dense_merge_is_nearly_the_best_of_its_rank(
    model_base: Path, model_adapters: Experts, tmp_path: Path, method: str, rank: int
) -> None:
    run(model_adapters, tmp_path / "whole", method)
    summary = run(model_adapters, tmp_path / "out", method, output="adapter", rank=rank)
    wanted, found = load_file(tmp_path / "whole" / "task_vector.safetensors"), products(tmp_path / "out")
    own = min(rank, 12)  # Three adapters of rank 4: more is not asked of PEFT.
    assert summary["relative_error"] == pytest.approx(distance(found, wanted), rel=1e-4)
    assert summary["relative_error"] <= 1.01 * truncation_error(wanted, own)
    model = PeftModel.from_pretrained(load(model_base), tmp_path / "out").eval()
    assert bool(torch.isfinite(logits(model)).all())


def test_a_dense_method_as_adapter_needs_a_rank(model_adapters: Experts, tmp_path: Path) -> None:
    for method in ("ties", "dare", "breadcrumbs"):
        message = refusal(model_adapters, tmp_path / "out", method, output="adapter")
        assert message == f"{method}: its result is dense; give --rank for the best adapter of that rank"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("method", "given"), LEVELS, ids=[f"{name}-{''.join(own.values())}" for name, own in LEVELS])
def test_what_is_not_finite_is_refused_by_expert_and_tensor(
    base: Path, experts: Experts, tmp_path: Path, method: str, given: dict[str, Any], value: float
) -> None:
    for name in (UP, NORM):
        folder = experts[1][1]
        state = read(folder)
        damaged = state[name].clone()
        damaged.view(-1)[-1] = value
        save_file(state | {name: damaged}, folder / "model.safetensors", metadata={"format": "pt"})
        for form in ("delta", "checkpoint"):
            message = refusal(experts, tmp_path / "out", method, base=base, output=form, **given)
            assert message.startswith("expert math")
            assert f"{name} holds NaN or infinite values" in message
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("method", ["simple_average", "ties"])
def test_a_base_that_is_not_finite_is_not_blamed_on_an_expert(
    base: Path, experts: Experts, tmp_path: Path, method: str
) -> None:
    edit(base, **{UP.replace(".", "__"): torch.full((8, 6), math.nan)})
    message = refusal(experts, tmp_path / "out", method, base=base)
    assert message.startswith("base")
    assert UP in message


def test_a_base_that_is_not_finite_is_refused_where_no_expert_updates_it(
    model_base: Path, model_adapters: Experts, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(model_base, tmp_path / "base"))
    for name in ("model.layers.1.self_attn.k_proj.weight", "model.layers.1.self_attn.q_proj.weight"):
        whole = read(copied)[name]
        damaged = whole.clone()
        damaged[-1, -1] = math.nan
        edit(copied, **{name.replace(".", "__"): damaged})
        message = refusal(model_adapters, tmp_path / "out", "simple_average", base=copied, output="checkpoint")
        assert message == f"base {copied}: {name} holds NaN or infinite values; fetch it again"
        edit(copied, **{name.replace(".", "__"): whole})


def test_buffers_may_be_infinite(base: Path, experts: Experts, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit(base, **{name.replace(".", "__"): torch.tensor([1.0, math.inf])})
    run(experts, tmp_path / "out", base=base, output="checkpoint")
    assert read(tmp_path / "out")[name].tolist() == [1.0, math.inf]


@pytest.mark.parametrize("form", ["delta", "checkpoint"])
def test_a_result_that_16_bits_cannot_hold_is_refused(base: Path, experts: Experts, tmp_path: Path, form: str) -> None:
    for folder in (base, *(folder for _, folder in experts)):
        edit(folder, **{UP.replace(".", "__"): read(folder)[UP] * 1e7})
    message = refusal(experts, tmp_path / "out", "simple_average", base=base, output=form, dtype="float16")
    assert UP in message


def test_a_missing_and_an_extra_tensor_are_refused(base: Path, experts: Experts, tmp_path: Path) -> None:
    folder = experts[1][1]
    edit(folder, **{UP.replace(".", "__"): None})
    assert refusal(experts, tmp_path / "out", base=base).startswith(f"expert math ({folder}): lacks {UP}, which base")
    shutil.copy(experts[0][1] / "model.safetensors", folder)
    edit(folder, model__layers__1__mlp__up_proj__weight=torch.ones(8, 6))
    message = refusal(experts, tmp_path / "out", base=base)
    assert message.startswith(f"expert math ({folder}): has model.layers.1.mlp.up_proj.weight, which base")


def test_another_shape_and_another_vocabulary_are_refused(base: Path, experts: Experts, tmp_path: Path) -> None:
    folder = experts[1][1]
    edit(folder, **{UP.replace(".", "__"): torch.ones(9, 6)})
    message = refusal(experts, tmp_path / "out", base=base)
    assert message.startswith(f"expert math ({folder}): {UP} is 9x6, in base {base} it is 8x6; it belongs to another")
    shutil.copy(experts[0][1] / "model.safetensors", folder)
    edit(folder, **{TABLE.replace(".", "__"): torch.ones(13, 6)})
    message = refusal(experts, tmp_path / "out", base=base)
    assert message.endswith(f"{TABLE} is 13x6, in base {base} it is 12x6; " + difference(13, 12))
    edit(folder, **{TABLE.replace(".", "__"): torch.ones(6, 12)})
    assert "is 6x12" in refusal(experts, tmp_path / "out", base=base)


def test_an_untied_expert_of_a_tied_base_is_refused(base: Path, experts: Experts, tmp_path: Path) -> None:
    folder = experts[1][1]
    head = read(folder)[TABLE] + 0.01
    edit(folder, lm_head__weight=head)
    configure(folder, tie_word_embeddings=False)
    message = refusal(experts, tmp_path / "out", base=base)
    assert message.startswith(f"expert math ({folder}): tie_word_embeddings is false, in base {base} it is true")
    configure(folder, tie_word_embeddings=None)
    message = refusal(experts, tmp_path / "out", base=base)
    assert message.startswith(f"expert math ({folder}): has lm_head.weight, which base {base} has not; it is untied")
    edit(folder, lm_head__weight=None)
    configure(folder, tie_word_embeddings=True)
    edit(base, lm_head__weight=read(base)[TABLE] + 0.01)
    configure(base, tie_word_embeddings=False)
    message = refusal(experts, tmp_path / "out", base=base)
    assert message.startswith("expert code")
    assert "tie_word_embeddings is true" in message


def test_a_head_that_contradicts_the_config_is_refused(base: Path, experts: Experts, tmp_path: Path) -> None:
    folder = experts[1][1]
    edit(folder, lm_head__weight=read(folder)[TABLE] + 0.01)
    message = refusal(experts, tmp_path / "out", base=base)
    assert message.startswith(f"expert math ({folder}): lm_head.weight differs from {TABLE}, though config.json ties")
    edit(folder, lm_head__weight=None)
    edit(base, lm_head__weight=read(base)[TABLE] + 0.01)
    message = refusal(experts, tmp_path / "out", base=base)
    assert message.startswith(f"base {base}: lm_head.weight differs from {TABLE}, though config.json ties them")


@pytest.mark.parametrize("where", ["base", "expert", "both"])
def test_a_head_that_repeats_the_embedding_is_no_tensor_of_its_own(
    base: Path, experts: Experts, tmp_path: Path, where: str
) -> None:
    run(experts, tmp_path / "plain", base=base, output="checkpoint")
    if where != "expert":
        edit(base, lm_head__weight=read(base)[TABLE].clone())
    if where != "base":
        edit(experts[0][1], lm_head__weight=read(experts[0][1])[TABLE].clone())
    run(experts, tmp_path / "out", base=base, output="checkpoint")
    assert same(read(tmp_path / "out"), read(tmp_path / "plain"))


def test_experts_of_an_unrelated_base_are_refused(tmp_path: Path) -> None:
    for seed, name in enumerate(("base", *NAMES)):
        torch.manual_seed(seed)
        Qwen3ForCausalLM(Qwen3Config(**MODEL)).save_pretrained(tmp_path / name)
    chosen = [(name, tmp_path / name) for name in NAMES]
    for form in ("delta", "checkpoint"):
        message = refusal(chosen, tmp_path / "out", base=tmp_path / "base", output=form)
        assert message.startswith("expert code")
        assert message.endswith("it was trained from another base")
    write(tmp_path / "safety", noise(read(tmp_path / "base"), 5, 0.01))
    related = [("safety", tmp_path / "safety"), ("math", tmp_path / "math")]
    assert refusal(related, tmp_path / "out", base=tmp_path / "base").startswith("expert math")
    run(related[:1], tmp_path / "out", base=tmp_path / "base")


def test_one_folder_under_two_names_is_refused(base: Path, experts: Experts, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(experts[0][1])
    for path in (experts[0][1], experts[0][1] / ".." / "code", tmp_path / "link"):
        message = refusal([*experts, ("other", path)], tmp_path / "out", base=base)
        assert message.startswith("experts code and other are the same folder")
    assert "every expert counts once" in refusal([*experts, experts[1]], tmp_path / "out", base=base)


def test_adapters_and_checkpoints_do_not_mix(
    model_base: Path, model_experts: Experts, model_adapters: Experts, tmp_path: Path
) -> None:
    message = refusal([model_experts[0], model_adapters[1]], tmp_path / "out", base=model_base)
    assert message == "expert code is a full checkpoint, expert math an adapter; merge one kind at a time"


@pytest.mark.parametrize(
    ("dtype", "whose"),
    [(torch.int8, "expert"), (torch.uint8, "expert"), (torch.float8_e4m3fn, "expert"), (torch.int8, "both")],
)
def test_quantised_weights_are_refused(
    base: Path, experts: Experts, tmp_path: Path, dtype: torch.dtype, whose: str
) -> None:
    for folder in (experts[1][1], base) if whose == "both" else (experts[1][1],):
        edit(folder, **{UP.replace(".", "__"): torch.ones(8, 6).to(dtype)})
    message = refusal(experts, tmp_path / "out", base=base)
    assert message.startswith(f"base {base}" if whose == "both" else f"expert math ({experts[1][1]})")
    assert f"{UP} is quantised" in message


def with_buffers(folder: Path, *names: str) -> Path:
    """Llama's architecture file with more buffers."""
    shipped = next(file for file in files() if file.stem == "llama")
    content = yaml.safe_load(shipped.read_text())
    content["roles"]["buffer"] += names
    (folder / "own.yaml").write_text(yaml.safe_dump(content))
    return folder / "own.yaml"


@pytest.mark.parametrize("holders", [("base",), ("math",), ("base", "code", "math")])
def test_rotary_frequencies_are_no_weights(base: Path, experts: Experts, tmp_path: Path, holders: tuple[str]) -> None:
    run(experts, tmp_path / "wanted", base=base, output="checkpoint")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    frequencies = torch.tensor([1.0, 0.1]).half()
    for holder, folder in (("base", base), *experts):
        if holder in holders:
            of_another_dtype = frequencies.float() + 0.001 if holder == "math" else frequencies
            edit(folder, **{name.replace(".", "__"): of_another_dtype})
    run(experts, tmp_path / "out", base=base, output="checkpoint")
    found = read(tmp_path / "out")
    if "base" in holders:
        assert found[name].dtype == torch.float16
        assert torch.equal(found.pop(name), frequencies)
    assert same(found, read(tmp_path / "wanted"))


def test_integer_tensors_stay_and_must_be_those_of_the_base(base: Path, experts: Experts, tmp_path: Path) -> None:
    places, flags = torch.arange(5), torch.tensor([True, False])
    for folder in (base, experts[0][1], experts[1][1]):
        edit(folder, model__position_ids=places, model__flags=flags)
    own = with_buffers(tmp_path, "model.position_ids", "model.flags")
    run(experts, tmp_path / "fine", base=base, output="checkpoint", architecture=own)
    found = read(tmp_path / "fine")
    assert torch.equal(found["model.position_ids"], places)
    assert torch.equal(found["model.flags"], flags)
    for other in (places + 1, torch.arange(6), places.float()):
        edit(experts[1][1], model__position_ids=other)
        message = refusal(experts, tmp_path / "out", base=base, architecture=own)
        assert message.startswith(f"expert math ({experts[1][1]}): model.position_ids holds integers")


def test_a_number_on_its_own_is_merged(base: Path, experts: Experts, tmp_path: Path) -> None:
    values = (1.0, 1.2, 1.4, 1.9)
    name = "model.layers.0.mlp.up_proj.bias"
    for value, folder in zip(values, (base, *(folder for _, folder in experts)), strict=True):
        edit(folder, **{name.replace(".", "__"): torch.tensor(value)})
    for method, wanted in (("simple_average", 1.5), ("ties", 1.5), ("tsv_merge", 1.5), ("task_arithmetic", 2.5)):
        run(experts, tmp_path / method, method, base=base, output="checkpoint")
        found = read(tmp_path / method)[name]
        assert found.shape == ()
        assert float(found) == pytest.approx(wanted, abs=1e-6)
    run(experts, tmp_path / "model_stock", "model_stock", base=base, output="checkpoint")


@pytest.mark.parametrize("method", ["dare", "dare_ties", "della"])
def test_a_stochastic_method_without_a_seed_is_refused(
    base: Path, experts: Experts, tmp_path: Path, method: str
) -> None:
    message = refusal(experts, tmp_path / "out", method, base=base, seed=None)
    assert message == f"{method}: is stochastic and has no seed; give --seed"
    run(experts, tmp_path / "out", "ties", base=base, seed=None)


def test_full_checkpoints_and_full_outputs_need_the_base(
    experts: Experts, model_adapters: Experts, tmp_path: Path
) -> None:
    assert "expert code is a full checkpoint, whose task vector needs the base" in refusal(experts, tmp_path / "out")
    message = refusal(model_adapters, tmp_path / "out", output="checkpoint")
    assert message == "a checkpoint needs the base's weights; give --base a folder"


def test_damaged_and_missing_shards_are_named(model_base: Path, model_experts: Experts, tmp_path: Path) -> None:
    folder = shard(model_experts[1][1], tmp_path / "math")
    chosen = [model_experts[0], ("math", folder)]
    second = sorted(folder.glob("*.safetensors"))[1]
    whole = second.read_bytes()
    for damaged in (whole[:-8], b"", whole[: len(whole) // 2], b"\xff" * 64):
        second.write_bytes(damaged)
        message = refusal(chosen, tmp_path / "out", base=model_base)
        assert message.startswith(f"expert math ({folder}): {second.name} is damaged or incomplete")
    second.unlink()
    message = refusal(chosen, tmp_path / "out", base=model_base)
    assert message.startswith(f"expert math ({folder}): there is no {second.name}")
    second.write_bytes(whole)
    (folder / "config.json").write_text("{")
    assert f"expert math ({folder}): config.json is no JSON" in refusal(chosen, tmp_path / "out", base=model_base)


def test_weights_that_transformers_does_not_read_are_left_aside(
    model_base: Path, model_experts: Experts, tmp_path: Path
) -> None:
    folder = tmp_path / "math"
    shutil.copytree(model_experts[1][1], folder)
    plain = run([model_experts[0], ("math", folder)], tmp_path / "plain", base=model_base, output="checkpoint")
    assert plain["left_aside"] == {}
    # Weights of others under the same names and under names of their own, an index that is not read, an optimizer's.
    shard(model_experts[2][1], tmp_path / "shards")
    for path in (tmp_path / "shards").glob("model*"):
        shutil.copy(path, folder)
    for name in ("old.safetensors", "consolidated.safetensors", "pytorch_model.bin"):
        shutil.copy(model_experts[2][1] / "model.safetensors", folder / name)
    beside = run([model_experts[0], ("math", folder)], tmp_path / "beside", base=model_base, output="checkpoint")
    shards = sorted(path.name for path in (tmp_path / "shards").glob("model-*"))
    names = ["consolidated.safetensors", *shards, "model.safetensors.index.json", "old.safetensors"]
    assert beside["left_aside"] == {"math": [*names, "pytorch_model.bin"]}
    weights = [tmp_path / out / "model.safetensors" for out in ("plain", "beside")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    # Without the single file it is the shards that are read.
    (folder / "model.safetensors").unlink()
    sharded = run([model_experts[0], ("math", folder)], tmp_path / "sharded", base=model_base)
    assert sharded["left_aside"] == {"math": ["consolidated.safetensors", "old.safetensors", "pytorch_model.bin"]}


def test_an_index_that_lies_is_refused(model_base: Path, model_experts: Experts, tmp_path: Path) -> None:
    folder = shard(model_experts[1][1], tmp_path / "math")
    chosen = [model_experts[0], ("math", folder)]
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shards = sorted(set(content["weight_map"].values()))
    dropped = next(key for key, name in content["weight_map"].items() if name == shards[-1])
    state = load_file(folder / shards[-1])
    save_file({key: tensor for key, tensor in state.items() if key != dropped}, folder / shards[-1])
    message = refusal(chosen, tmp_path / "out", base=model_base)
    assert message.startswith(f"expert math ({folder}): {dropped} is not in {shards[-1]}, though")
    index.write_text("{}")
    assert "has no weight_map" in refusal(chosen, tmp_path / "out", base=model_base)


@pytest.mark.parametrize("name", ["../base/model.safetensors", "/etc/passwd", "..", "", 7])
def test_an_index_that_leads_out_of_its_folder_is_refused(
    model_base: Path, model_experts: Experts, tmp_path: Path, name: Any
) -> None:
    folder = shard(model_experts[1][1], tmp_path / "math")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][next(iter(content["weight_map"]))] = name
    index.write_text(json.dumps(content))
    message = refusal([model_experts[0], ("math", folder)], tmp_path / "out", base=model_base)
    assert message.endswith(f"names {name!r}, which is not the name of a file beside it")


def test_weights_must_be_those_of_the_experts(base: Path, experts: Experts, tmp_path: Path) -> None:
    for method in ("weighted_average", "task_arithmetic", "ties"):
        params: dict[str, Any] = {"weights": {"code": 1, "math": 1, "safty": 1}}
        message = refusal(experts, tmp_path / "out", method, base=base, params=params)
        assert message == "weights: 'safty' is no expert of this merge; did you mean 'safety'?"
        params = {"weights": {"code": 1, "math": 1}}
        message = refusal(experts, tmp_path / "out", method, base=base, params=params)
        assert message == "weights: has no number for expert safety"


def test_statistics_must_be_there_for_every_expert(base: Path, experts: Experts, tmp_path: Path) -> None:
    files = {}
    for seed, name in enumerate(NAMES):
        files[name] = tmp_path / f"{name}.safetensors"
        save_file({key: tensor.abs() for key, tensor in noise(read(base), 30 + seed, 0.5).items()}, files[name])
    for method in ("fisher", "regmean", "localize_and_stitch_trained"):
        message = refusal(experts, tmp_path / "out", method, base=base)
        assert message.startswith(f"{method}: needs the ")
    lacking = {name: path for name, path in files.items() if name != "math"}
    assert refusal(experts, tmp_path / "out", "fisher", base=base, statistics=lacking).startswith("expert math")
    absent = {**files, "math": tmp_path / "nowhere.safetensors"}
    assert "expert math: there is no nowhere" in refusal(
        experts, tmp_path / "out", "fisher", base=base, statistics=absent
    )
    state = load_file(files["math"])
    del state[UP]
    save_file(state, tmp_path / "part.safetensors")
    part = {**files, "math": tmp_path / "part.safetensors"}
    assert UP in refusal(experts, tmp_path / "out", "fisher", base=base, statistics=part)
    run(experts, tmp_path / "out", "fisher", base=base, statistics=files)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"space": "adapter"}, "adapter space merges LoRA factors; full checkpoints have none"),
        ({"output": "adapter"}, "full checkpoints do not merge into an adapter"),
        ({"output": "adapter", "rank": 4}, "full checkpoints do not merge into an adapter"),
        ({"method": "knots"}, "knots: aligns LoRA factors; full checkpoints have none"),
        ({"method": "tsv_merge", "space": "adapter"}, "tsv_merge: does not work in space 'adapter'"),
        ({"method": "slerp"}, "slerp: merges 1 to 2 experts, here are 3"),
        ({"output": "picture"}, "output: 'picture' is not one of"),
        ({"dtype": "int8"}, "dtype: int8 is not one of"),
        ({"space": "both"}, "ties: does not work in space 'both'"),
        ({"preset": "mergkit"}, "ties: unknown preset 'mergkit'; did you mean 'mergekit'?"),
        ({"params": {"densty": 1}}, "ties: unknown parameter 'densty'"),
        ({"method": "tiess"}, "unknown merge method 'tiess'"),
    ],
)
def test_impossible_combinations_for_full_checkpoints_are_refused(
    base: Path, experts: Experts, tmp_path: Path, given: dict[str, Any], named: str
) -> None:
    assert refusal(experts, tmp_path / "out", base=base, **given).startswith(named)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"space": "adapter", "rank": 4}, "adapter space writes an adapter of the experts' rank"),
        ({"space": "adapter", "output": "delta"}, "adapter space writes an adapter of the experts' rank"),
        ({"space": "adapter", "output": "checkpoint"}, "adapter space writes an adapter of the experts' rank"),
        (
            {"space": "adapter", "preset": "mergebench"},
            "ties: ranks and votes over the whole model are for delta space",
        ),
    ],
)
def test_impossible_combinations_for_adapters_are_refused(
    model_base: Path, model_adapters: Experts, tmp_path: Path, given: dict[str, Any], named: str
) -> None:
    assert refusal(model_adapters, tmp_path / "out", base=model_base, **given).startswith(named)


def test_an_expert_of_another_recorded_base_is_refused(base: Path, experts: Experts, tmp_path: Path) -> None:
    mine, other = "98" * 32, "12" * 32
    (experts[0][1] / "expert.json").write_text(json.dumps({"base_sha256": mine}))
    (experts[1][1] / "expert.json").write_text(json.dumps({"facts": {"base_sha256": other}}))
    for digest in (mine, None):
        message = refusal(experts, tmp_path / "out", base=base, base_sha256=digest)
        assert message == (
            f"expert math ({experts[1][1]}): trained on base 12121212..., this merge is for 98989898...; "
            "retrain it or merge onto its own base"
        )
    (experts[1][1] / "expert.json").unlink()
    summary = run(experts, tmp_path / "fine", base=base, base_sha256=mine, output="checkpoint")
    assert summary["base_recorded"] == {"code": True, "math": False, "safety": False}


def test_records_of_the_base_are_not_those_of_the_merge(base: Path, experts: Experts, tmp_path: Path) -> None:
    for name in ("expert.json", "merged.json", "fetched.json"):
        (base / name).write_text(json.dumps({"facts": {"base_sha256": "12" * 32}}))
    run(experts, tmp_path / "out", base=base, output="checkpoint")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]


def test_a_merge_does_not_overwrite_what_it_reads(
    base: Path, experts: Experts, model_adapters: Experts, tmp_path: Path
) -> None:
    adapters = []
    for name, folder in model_adapters:
        shutil.copytree(folder, tmp_path / f"{name}_adapter")
        adapters.append((name, tmp_path / f"{name}_adapter"))
    (base / "merged.json").write_text("{}")
    cases: list[tuple[Experts, Path, dict[str, Any]]] = [
        (experts, base, {"base": base, "output": "checkpoint"}),
        (experts, experts[0][1], {"base": base, "output": "checkpoint"}),
        (experts, experts[0][1], {"base": base, "output": "delta"}),
        (adapters, adapters[0][1], {"method": "simple_average"}),
        (adapters, adapters[0][1], {"method": "simple_average", "output": "delta"}),
    ]
    for chosen, out, given in cases:
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        with pytest.raises(UserError):
            run(chosen, out, **given)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before


KILLED = """
import itertools, os, sys
from pathlib import Path
from mergetime.merging import engine, outputs
outputs.SHARD = 12_000
target, calls = getattr(engine if sys.argv[1] == "merging" else Path, sys.argv[2]), itertools.count()
def dying(*given):
    if next(calls) == int(sys.argv[3]):
        os._exit(9)
    return target(*given)
setattr(engine if sys.argv[1] == "merging" else Path, sys.argv[2], dying)
root, out = Path(sys.argv[4]), Path(sys.argv[5])
pool = [(name, root / name) for name in ("code", "math", "safety")]
engine.merge(pool, method="ties", params={}, space="delta", seed=1, out=out, base=root / "base", output="checkpoint")
"""


@pytest.mark.parametrize(("stage", "function", "call"), [("merging", "square_norm", 9), ("renaming", "replace", 2)])
def test_a_killed_merge_is_no_model_and_the_next_one_completes(
    model_base: Path,
    model_experts: Experts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    function: str,
    call: int,
) -> None:
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    command = [sys.executable, "-c", KILLED, stage, function, str(call), str(model_base.parent), str(out)]
    assert subprocess.run(command, env=environment, check=False).returncode == 9
    left = [path.name for path in out.iterdir()]
    assert left
    final = [name for name in left if not name.endswith(".partial")]
    assert "config.json" not in final
    assert "model.safetensors.index.json" not in final
    assert len(final) == (0 if stage == "merging" else call)
    monkeypatch.setattr(outputs, "SHARD", 12_000)
    run(model_experts, out, base=model_base, output="checkpoint")
    run(model_experts, tmp_path / "fresh", base=model_base, output="checkpoint")
    names = sorted(path.name for path in out.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "fresh").iterdir())
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()


@pytest.mark.parametrize("method", ["ties", "tsv_merge", "dare_ties"])
def test_threads_do_not_change_a_byte(base: Path, experts: Experts, tmp_path: Path, method: str) -> None:
    for threads in (1, 4):
        run(experts, tmp_path / str(threads), method, base=base, output="checkpoint", threads=threads)
    assert same(read(tmp_path / "1"), read(tmp_path / "4"))


@pytest.mark.parametrize(("method", "given"), LEVELS, ids=[f"{name}-{''.join(own.values())}" for name, own in LEVELS])
def test_the_size_of_blocks_does_not_change_the_result(
    base: Path, experts: Experts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, given: dict[str, Any]
) -> None:
    whole = run(experts, tmp_path / "whole", method, base=base, output="checkpoint", **given)
    monkeypatch.setitem(pool.BLOCK, "cpu", 18)
    blocks = run(experts, tmp_path / "blocks", method, base=base, output="checkpoint", **given)
    found = read(tmp_path / "blocks")
    for name, tensor in read(tmp_path / "whole").items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)
    for key in ("entries", "sparsity", "sign_conflicts", "base_recorded", "output"):
        assert whole.get(key) == blocks.get(key)
    for key in ("merged_norm", "expert_norms"):
        assert blocks[key] == pytest.approx(whole[key], rel=1e-6)


def with_companions(folder: Path, out: Path) -> Path:
    """A copy of a model with all that people keep beside weights."""
    shutil.copytree(folder, out)
    configure(out, auto_map={"AutoModelForCausalLM": "modeling_mine.MineForCausalLM"})
    configure(out, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    code = "from transformers import Qwen3ForCausalLM\n\n\nclass MineForCausalLM(Qwen3ForCausalLM):\n    pass\n"
    texts = {
        "modeling_mine.py": code,
        "tokenizer.json": json.dumps({"model": {"vocab": {"a": 0}}, "added_tokens": [], "version": "1.0"}),
        "tokenizer_config.json": json.dumps({"chat_template": "of the base"}),
        "qwen.tiktoken": "x",
        "additional_chat_templates/rag.jinja": "{{ x }}",
        "tokenizer/x.json": "{}",
        "expert.json": json.dumps({"facts": {"base_sha256": None}}),
        "pytorch_model.bin.index.json": "{}",
        "README.md": "of the base",
    }
    for name, text in texts.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(text)
    return out


def test_a_checkpoint_gets_all_that_loads_it(model_base: Path, model_experts: Experts, tmp_path: Path) -> None:
    base = with_companions(model_base, tmp_path / "base")
    summary = run(model_experts, tmp_path / "out", base=base, output="checkpoint")
    beside = {"modeling_mine.py", "tokenizer.json", "tokenizer_config.json", "qwen.tiktoken", "generation_config.json"}
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {*beside, "model.safetensors", "config.json", "additional_chat_templates/rag.jinja"}
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert type(loaded).__name__ == "MineForCausalLM"
    assert summary["tokenizers"] == {}


def test_a_companion_is_no_link_out_of_the_models_folder(
    model_base: Path, model_experts: Experts, tmp_path: Path
) -> None:
    snapshot = tmp_path / "hub" / "snapshots" / "main"
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(model_base, snapshot)
    blob = tmp_path / "hub" / "blobs" / "0123"
    blob.parent.mkdir()
    blob.write_text("x")
    (snapshot / "merges.txt").symlink_to("../../blobs/0123")
    run(model_experts, tmp_path / "out", base=snapshot, output="checkpoint")
    assert (tmp_path / "out" / "merges.txt").read_text() == "x"

    (tmp_path / "secret").write_text("token")
    link = snapshot / "vocab.txt"
    link.symlink_to(tmp_path / "secret")
    message = refusal(model_experts, tmp_path / "other", base=snapshot, output="checkpoint")
    assert message == f"{link}: is a link that leads out of the model's folder; put a copy of the file in its place"
    assert not any((tmp_path / "other").glob("*"))
    dry = refusal(model_experts, tmp_path / "other", base=snapshot, output="checkpoint", dry_run=True)
    assert dry == message


def test_code_that_no_setting_names_stays_where_it_is(model_base: Path, model_experts: Experts, tmp_path: Path) -> None:
    shutil.copytree(model_base, tmp_path / "base")
    (tmp_path / "base" / "train.py").write_text("import os")
    run(model_experts, tmp_path / "out", base=tmp_path / "base", output="checkpoint")
    assert not (tmp_path / "out" / "train.py").exists()


@pytest.mark.parametrize(
    ("file", "content", "part"),
    [
        ("tokenizer.json", {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": []}, "tokenizer"),
        ("tokenizer.json", {"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": "<x>"}]}, "tokenizer"),
        ("tokenizer_config.json", {"chat_template": "of the expert"}, "chat template"),
        ("chat_template.jinja", "of the expert", "chat template"),
        ("tokenizer.json", {"model": {"vocab": {"a": 0}}, "added_tokens": [], "truncation": None}, None),
        ("tokenizer_config.json", {"chat_template": "of the base", "padding_side": "left"}, None),
    ],
)
def test_an_experts_tokenizer_that_differs_is_said_and_can_be_taken(
    file: str, content: Any, part: str | None, model_base: Path, model_experts: Experts, tmp_path: Path
) -> None:
    base = with_companions(model_base, tmp_path / "base")
    shutil.copytree(model_experts[1][1], tmp_path / "math")
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "math" / file).write_text(text)
    chosen = [model_experts[0], ("math", tmp_path / "math")]
    summary = run(chosen, tmp_path / "plain", base=base, output="checkpoint")
    assert summary["tokenizers"] == ({"math": part} if part else {})
    (tmp_path / "math" / "pytorch_model.bin").write_text("old")
    dry = Preview(**run(chosen, tmp_path / "plain", base=base, output="checkpoint", dry_run=True)).lines(1)
    warning = f"warning: the {part} of expert math is not the one written; --tokenizer-from math takes it"
    assert [line for line in dry if "math" in line] == [
        *([warning] if part else []),
        "left aside of math: pytorch_model.bin",
    ]
    assert not (tmp_path / "plain" / file).exists() or (tmp_path / "plain" / file).read_text() != text
    run(chosen, tmp_path / "taken", base=base, output="checkpoint", tokenizer_from="math")
    assert (tmp_path / "taken" / file).read_text() == text
    # All of the base's tokenizer goes: half of one and half of another are none.
    assert not (tmp_path / "taken" / "qwen.tiktoken").exists()
    assert (tmp_path / "taken" / "modeling_mine.py").is_file()


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("holder", ["base", "math"])
@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("chat_template.jinja", b"{{ '\xe9' }}", "is no text in UTF-8; save it in UTF-8, or fetch it again"),
        ("tokenizer_config.json", b"{", "is no JSON that can be read (Expecting property name"),
        ("tokenizer_config.json", b"[]", "holds no JSON object; fetch it again, or take it out of the folder"),
        ("tokenizer.json", b"[" * 200_000 + b"]" * 200_000, "is no JSON that can be read (nested too deep); fetch it"),
        ("tokenizer.json", None, "tokenizer.json has 100000001 bytes; such files have at most 100000000; fetch or"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_leaves_an_earlier_merge_whole(
    file: str,
    content: bytes | None,
    said: str,
    holder: str,
    dry_run: bool,
    model_base: Path,
    model_experts: Experts,
    tmp_path: Path,
) -> None:
    folders = {"base": with_companions(model_base, tmp_path / "base"), "math": tmp_path / "math"}
    shutil.copytree(model_experts[1][1], folders["math"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folders["base"] / name, folders["math"] / name)
    chosen, out = [("math", folders["math"])], tmp_path / "out"
    run(chosen, out, base=folders["base"], output="checkpoint")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()}
    with (folders[holder] / file).open("wb") as damaged:
        damaged.write(content or b"")
        damaged.truncate(len(content) if content is not None else 100_000_001)
    if file.endswith(".jinja") and holder == "base":
        (folders["math"] / file).write_text("of the expert")
    with pytest.raises(UserError) as caught:
        run(chosen, out, "simple_average", base=folders["base"], output="checkpoint", dry_run=dry_run)
    message = str(caught.value)
    assert (str(folders[holder]) in message, file in message, said in message) == (True, True, True)
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("name", "output", "message"),
    [
        ("mat", "checkpoint", "--tokenizer-from: 'mat' is no expert of this merge; did you mean 'math'?"),
        ("math", "checkpoint", "--tokenizer-from: the folder of expert math holds no tokenizer; leave the option out"),
        ("math", "delta", "--tokenizer-from is of a checkpoint; the output is a delta"),
    ],
)
def test_a_tokenizer_that_cannot_be_taken_is_refused(
    name: str, output: str, message: str, model_base: Path, model_experts: Experts, tmp_path: Path
) -> None:
    refused = refusal(model_experts, tmp_path / "out", base=model_base, output=output, tokenizer_from=name)
    assert refused == message
