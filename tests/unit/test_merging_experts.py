"""Merging adapter folders: streaming, refusals, and what is left behind by a failure."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergetime.artifacts import adapter_config
from mergetime.artifacts.adapters import load_delta
from mergetime.core.errors import UserError
from mergetime.merging import registry
from mergetime.merging.engine import merge, merge_stack
from mergetime.merging.method import TensorContext

SCRIPTS = Path(__file__).parents[2] / "scripts"
MODULES = ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj")
Experts = list[tuple[str, Path]]


def write_adapter(folder: Path, seed: int = 0, rank: int = 4, base: str | None = None, **config: Any) -> Path:
    """An adapter folder in PEFT's layout with random factors for MODULES, each 6 x 5."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True)
    weights = {}
    for module in MODULES:
        weights[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, 5, generator=generator)
        weights[f"base_model.model.{module}.lora_B.weight"] = torch.randn(6, rank, generator=generator)
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "bias": "none", "target_modules": ["up_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    if base:
        (folder / "expert.json").write_text(json.dumps({"base_sha256": base}))
    return folder


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors of an adapter whose keys end so (dots written as __), or drop them where None is given."""
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    for ending, tensor in changes.items():
        for key in [key for key in weights if key.endswith(ending.replace("__", "."))]:
            if tensor is None:
                del weights[key]
            else:
                weights[key] = tensor
    save_file(weights, path)


@pytest.fixture
def experts(tmp_path: Path) -> Experts:
    return [(name, write_adapter(tmp_path / name, seed)) for seed, name in enumerate(("math", "code", "safety"))]


def run(experts: Experts, out: Path, method: str = "ties", space: str = "delta", **given: Any) -> dict[str, Any]:
    return merge(experts, method=method, params={}, space=space, out=out, **{"seed": 1, **given})


def test_delta_space_writes_dense_updates_under_the_base_names(experts: Experts, tmp_path: Path) -> None:
    summary = run(experts, tmp_path / "out")
    written = load_file(tmp_path / "out" / "task_vector.safetensors")
    assert list(written) == [f"{module}.weight" for module in MODULES]
    for name, tensor in written.items():
        stack = torch.stack([dict(load_delta(folder))[name] for _, folder in sorted(experts)])
        method = registry.get("ties")
        wanted = merge_stack(method, stack, TensorContext(name, ("code", "math", "safety"), 1), method.validate({}))
        torch.testing.assert_close(tensor, wanted, rtol=0, atol=0)
    assert summary["entries"] == 60
    assert summary["sparsity"] == sum(int((tensor == 0).sum()) for tensor in written.values()) / 60
    total = torch.cat([tensor.flatten() for tensor in written.values()])
    assert summary["merged_norm"] == pytest.approx(float(total.norm()), rel=1e-6)
    assert dict(load_delta(tmp_path / "out")).keys() == written.keys()


def test_norms_and_conflicts_are_those_of_the_experts(experts: Experts, tmp_path: Path) -> None:
    deltas = {name: dict(load_delta(folder)) for name, folder in experts}
    wanted = {name: float(torch.cat([t.flatten() for t in delta.values()]).norm()) for name, delta in deltas.items()}
    for space in ("delta", "adapter"):
        assert run(experts, tmp_path / space, space=space)["expert_norms"] == pytest.approx(wanted, rel=1e-5)
    signs = torch.stack([torch.cat([t.flatten() for t in delta.values()]).sign() for delta in deltas.values()])
    conflicts = float((signs.sum(dim=0).abs() < 3).float().mean())
    assert run(experts, tmp_path / "again")["sign_conflicts"] == pytest.approx(conflicts)


WITHOUT_DATA = [name for name in registry.names() if not registry.get(name).statistics]


@pytest.mark.parametrize(
    ("method", "space"), [(name, space) for name in WITHOUT_DATA for space in registry.get(name).spaces]
)
def test_order_of_experts_does_not_change_a_byte(experts: Experts, tmp_path: Path, method: str, space: str) -> None:
    pool = experts[: int(min(3, registry.get(method).count[1]))]
    run(pool, tmp_path / "one", method, space)
    run(pool[::-1], tmp_path / "two", method, space)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    exact = space == "adapter" or registry.get(method).keeps_low_rank(registry.get(method).validate({}))
    assert files == (["adapter_config.json", "adapter_model.safetensors"] if exact else ["task_vector.safetensors"])
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("config", [{}, {"use_rslora": True}, {"alpha_pattern": {"layers.1.mlp.up_proj": 32}}])
def test_one_expert_comes_out_as_it_went_in(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = write_adapter(tmp_path / "math", **config)
    wanted = dict(load_delta(folder))
    for space in ("delta", "adapter"):
        run([("math", folder)], tmp_path / space, "simple_average", space)
        found = dict(load_delta(tmp_path / space))
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def test_seed_changes_dare_and_only_dare(experts: Experts, tmp_path: Path) -> None:
    for method in ("ties", "dare_ties", "dare", "della"):
        files = []
        for seed in (1, 2):
            out = tmp_path / f"{method}{seed}"
            run(experts, out, method, seed=seed)
            files.append((out / "task_vector.safetensors").read_bytes())
        assert (files[0] == files[1]) == (method == "ties")


def refusal(experts: Experts, out: Path, **given: Any) -> str:
    """The message of a merge that must fail and must leave no file."""
    with pytest.raises(UserError) as caught:
        run(experts, out, **given)
    assert not out.exists() or not list(out.iterdir())
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "some"}, "bias is some, where PEFT knows none, all and lora_only"),
        ({"modules_to_save": ["lm_head"]}, "lacks lm_head, though modules_to_save of its adapter_config.json names it"),
        ({"peft_type": "LOHA"}, "peft_type is LOHA"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is pissa_niter_4"),
        ({"r": 16}, "has rank 4, its config says 16"),
        ({"lora_alpha": None}, "has no number lora_alpha"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan in adapter_config.json; it must be a positive number"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf in adapter_config.json; it must be a positive number"),
        ({"lora_alpha": 1e308}, "lora_alpha is 1e+308 in adapter_config.json; it must be a positive number"),
        ({"lora_alpha": 0}, "lora_alpha is 0 in adapter_config.json; it must be a positive number"),
        ({"lora_alpha": True}, "lora_alpha is True in adapter_config.json; it must be a positive number"),
        ({"r": 0}, "r is 0 in adapter_config.json; it must be a positive whole number"),
        ({"r": 4.5}, "r is 4.5 in adapter_config.json; it must be a positive whole number"),
        ({"alpha_pattern": {"up_proj": float("nan")}}, "alpha_pattern up_proj is nan in adapter_config.json"),
        ({"alpha_pattern": {"up_proj": "8"}}, "alpha_pattern up_proj is 8 in adapter_config.json"),
        ({"rank_pattern": ["up_proj"]}, "rank_pattern of adapter_config.json is not an object"),
    ],
)
def test_what_is_not_plain_lora_is_refused(tmp_path: Path, config: dict[str, Any], named: str) -> None:
    folder = write_adapter(tmp_path / "math", **config)
    message = refusal([("math", folder)], tmp_path / "out")
    assert message.startswith(f"expert math ({folder}): ")
    assert named in message


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("(", "the pattern '(' of adapter_config.json is not a regular expression"),
        ("(.|..|...)+[A-Z]", "write them plainly"),
    ],
)
def test_a_hostile_pattern_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, named: str
) -> None:
    monkeypatch.setattr(adapter_config, "_PATTERNS_S", 0.2)
    for key in ("rank_pattern", "alpha_pattern"):
        config: dict[str, Any] = {key: {pattern: 4}}
        folder = write_adapter(tmp_path / key, **config)
        message = refusal([("math", folder)], tmp_path / "out")
        assert message.startswith(f"expert math ({folder}): ")
        assert named in message


def test_patterns_have_their_time_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_config, "_PATTERNS_S", 0.2)
    quick: dict[str, Any] = {f"no_{number}(.|..)*x": 4 for number in range(100_000)}
    message = refusal([("math", write_adapter(tmp_path / "math", rank_pattern=quick))], tmp_path / "out")
    assert "the patterns of adapter_config.json take over 0.2 s" in message


def test_factors_of_whole_numbers_are_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "math")
    edit_weights(folder, layers__1__mlp__up_proj__lora_B__weight=torch.ones(6, 4, dtype=torch.int32))
    assert "lora_B.weight is I32; LoRA factors are floating-point" in refusal([("math", folder)], tmp_path / "out")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("space", ["delta", "adapter"])
def test_nan_is_refused_by_expert_and_tensor_and_leaves_no_file(
    experts: Experts, tmp_path: Path, value: float, space: str
) -> None:
    folder = experts[1][1]
    edit_weights(folder, layers__1__mlp__up_proj__lora_B__weight=torch.full((6, 4), value))
    message = refusal(experts, tmp_path / "out", space=space)
    assert message.startswith(f"expert code ({folder}): base_model.model.{MODULES[1]}.lora_B.weight holds NaN")


def without(folder: Path, module: str) -> None:
    """Take a module out of an adapter."""
    ending = module.removeprefix("model.").replace(".", "__")
    edit_weights(folder, **{f"{ending}__lora_{factor}__weight": None for factor in "AB"})


@pytest.mark.parametrize("method", [name for name in WITHOUT_DATA if "delta" in registry.get(name).spaces])
def test_a_module_that_an_expert_lacks_is_one_that_it_leaves_as_it_is(
    experts: Experts, tmp_path: Path, method: str
) -> None:
    pool = experts[: int(min(3, registry.get(method).count[1]))]
    lacking = ((pool[0][1], MODULES[0]), (pool[1][1], MODULES[1]))
    for folder, module in lacking:
        ending = module.removeprefix("model.").replace(".", "__")
        edit_weights(folder, **{f"{ending}__lora_B__weight": torch.zeros(6, 4)})
    run(pool, tmp_path / "zeros", method)
    wanted = dict(load_delta(tmp_path / "zeros"))
    for folder, module in lacking:
        without(folder, module)
    run(pool, tmp_path / "out", method)
    written = dict(load_delta(tmp_path / "out"))
    assert written.keys() == wanted.keys() == {f"{module}.weight" for module in MODULES}
    for name, tensor in written.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-5)


def test_the_adapter_of_experts_on_other_modules_names_all_of_them(experts: Experts, tmp_path: Path) -> None:
    first = dict(experts)["code"]
    without(first, MODULES[0])
    config = json.loads((first / "adapter_config.json").read_text())
    patterns = {"target_modules": ".*up_proj", "layers_to_transform": [1], "layers_pattern": "layers"}
    (first / "adapter_config.json").write_text(json.dumps(config | patterns))
    run(experts, tmp_path / "out", "simple_average")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == sorted(MODULES)
    assert config["layers_to_transform"] is config["layers_pattern"] is None
    ranks = {MODULES[0]: 5, MODULES[1]: 5}
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {module: len(written[f"base_model.model.{module}.lora_A.weight"]) for module in MODULES} == ranks


def test_adapter_space_and_data_want_the_same_modules(experts: Experts, tmp_path: Path) -> None:
    without(experts[2][1], MODULES[1])
    message = refusal(experts, tmp_path / "out", space="adapter")
    assert message == (
        f"expert safety ({experts[2][1]}): has no {MODULES[1]}, which expert code ({experts[1][1]}) has; "
        "adapter space merges factor by factor, delta space takes it for no update"
    )


def test_a_dense_merge_has_the_rank_that_is_asked_for(experts: Experts, tmp_path: Path) -> None:
    pool = [(name, write_adapter(tmp_path / f"thin_{name}", seed, rank=1)) for seed, (name, _) in enumerate(experts)]
    run(pool, tmp_path / "dense")
    summary = run(pool, tmp_path / "out", output="adapter", rank=5)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 5
    assert summary["relative_error"] < 1e-6
    wanted = dict(load_delta(tmp_path / "dense"))
    for name, tensor in load_delta(tmp_path / "out"):
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-5)


def test_other_tensors_shapes_and_half_pairs_are_refused(experts: Experts, tmp_path: Path) -> None:
    folder = experts[0][1]
    edit_weights(folder, layers__1__mlp__up_proj__lora_B__weight=torch.ones(7, 4))
    assert "is 7x5, in expert code" in refusal(experts, tmp_path / "out")
    edit_weights(folder, layers__1__mlp__up_proj__lora_B__weight=None)
    assert f"{MODULES[1]} lacks one of its two LoRA factors" in refusal(experts, tmp_path / "out")
    save_file({"base_model.model.lm_head.scale": torch.ones(2, 2)}, folder / "adapter_model.safetensors")
    assert "base_model.model.lm_head.scale is no LoRA factor" in refusal(experts, tmp_path / "out")


def test_another_base_is_refused(tmp_path: Path) -> None:
    mine, other = "98" * 32, "12" * 32
    right = write_adapter(tmp_path / "code", base=mine)
    wrong = write_adapter(tmp_path / "run" / "1x", seed=1)
    (tmp_path / "run" / "expert.json").write_text(json.dumps({"facts": {"base_sha256": other}}))
    pool = [("code", right), ("math", wrong)]
    wanted = (
        f"expert math ({wrong}): trained on base 12121212..., this merge is for 98989898...; "
        "retrain it or merge onto its own base"
    )
    assert refusal(pool, tmp_path / "out", base_sha256=mine) == wanted
    assert refusal(pool, tmp_path / "out") == wanted
    foreign = write_adapter(tmp_path / "foreign", seed=2)
    summary = run([("code", right), ("foreign", foreign)], tmp_path / "out", base_sha256=mine)
    assert summary["base_recorded"] == {"code": True, "foreign": False}


def test_unequal_ranks_are_refused_in_adapter_space_only(experts: Experts, tmp_path: Path) -> None:
    pool = [*experts, ("wide", write_adapter(tmp_path / "wide", seed=9, rank=5))]
    message = refusal(pool, tmp_path / "out", space="adapter")
    assert message.startswith(f"expert wide ({tmp_path / 'wide'}): {MODULES[0]} has rank 5, in expert code")
    run(pool, tmp_path / "out")


def test_an_expert_given_twice_and_no_expert_are_refused(experts: Experts, tmp_path: Path) -> None:
    assert refusal([*experts, experts[0]], tmp_path / "out").startswith("expert math is given 2 times")
    assert refusal([], tmp_path / "out") == "there is no expert to merge"


def test_absent_and_damaged_files_are_named(experts: Experts, tmp_path: Path) -> None:
    weights = experts[0][1] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert "adapter_model.safetensors is damaged or incomplete" in refusal(experts, tmp_path / "out")
    weights.unlink()
    assert "there is no adapter_model.safetensors; weights are read from safetensors alone, scripts/" in refusal(
        experts, tmp_path / "out"
    )


def test_a_result_that_is_not_finite_is_refused(experts: Experts, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^ties: .*up_proj\.weight is not finite after merging with"):
        merge(experts, method="ties", params={"lambda": 3e38}, space="delta", seed=1, out=tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("method", "space", "given"),
    [
        ("ties", "adapter", {}),
        ("ties", "delta", {"output": "adapter", "rank": 2}),
        ("task_arithmetic", "adapter", {}),
        ("task_arithmetic", "delta", {}),
        ("task_arithmetic", "delta", {"output": "adapter", "rank": 2}),
        ("task_arithmetic", "delta", {"output": "delta"}),
    ],
)
def test_whatever_is_written_of_it(
    experts: Experts, tmp_path: Path, method: str, space: str, given: dict[str, Any]
) -> None:
    for name, _ in experts:
        factors = {f"layers__{layer}__mlp__up_proj__lora_B__weight": torch.full((6, 4), 1e25) for layer in (0, 1)}
        edit_weights(tmp_path / name, **factors)
    with pytest.raises(UserError, match=rf"^{method}: .*up_proj.*weight is not finite after merging with"):
        merge(experts, method=method, params={"lambda": 3e38}, space=space, seed=1, out=tmp_path / "out", **given)
    assert not list((tmp_path / "out").iterdir())


def test_a_killed_merge_leaves_nothing_at_the_target_and_the_next_one_completes(
    experts: Experts, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code = (
        "import os, sys; from pathlib import Path; from mergetime.merging import engine;"
        "engine.square_norm = lambda tensor: os._exit(9);"
        "pool, out = [('math', Path(sys.argv[1]))], Path(sys.argv[2]);"
        "engine.merge(pool, method='ties', params={}, space='delta', seed=1, out=out)"
    )
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    ended = subprocess.run([sys.executable, "-c", code, experts[0][1], out], env=environment, check=False)
    assert ended.returncode == 9
    assert not (out / "task_vector.safetensors").exists()
    run(experts, out)
    assert [path.name for path in out.iterdir()] == ["task_vector.safetensors"]
