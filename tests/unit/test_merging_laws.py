"""Laws that merge methods obey, whatever the numbers: identity, order, scale, spaces, expectation, decompositions."""

import itertools
import json
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mergetime.merging import factors, registry
from mergetime.merging.engine import merge, merge_stack
from mergetime.merging.method import TensorContext

EXPERTS = ("code", "math", "safety")
WEIGHTS = {"code": 0.5, "math": 1.5, "safety": 0.75}
MATRIX = "model.layers.0.mlp.up_proj.weight"
Tensors = Mapping[str, torch.Tensor]
Experts = list[tuple[str, Path]]

# Parameters at which one expert alone comes out as it went in, and why it does not at the defaults; None: it does.
IDENTITY: dict[str, tuple[dict[str, Any], str | None]] = {
    "simple_average": ({}, None),
    "weighted_average": ({}, None),
    "greedy_soup": ({}, None),
    "task_arithmetic": ({}, None),
    "model_stock": ({}, None),
    "slerp": ({}, None),
    "tsv_merge": ({}, None),
    "fisher": ({}, None),
    "regmean": ({}, None),
    "localize_and_stitch_trained": ({}, None),
    "ties": ({"density": 1.0}, "half of the entries are trimmed"),
    "dare": ({"density": 1.0}, "half of the entries are dropped at random"),
    "dare_ties": ({"density": 1.0}, "half of the entries are dropped at random"),
    "della": ({"density": 1.0}, "half of the entries are dropped at random"),
    "della_linear": ({"density": 1.0}, "half of the entries are dropped at random"),
    "breadcrumbs": ({"density": 1.0}, "small and large entries are removed"),
    "breadcrumbs_ties": ({"density": 1.0}, "small and large entries are removed"),
    "localize_and_stitch": ({"density": 1.0}, "only the largest entries stay"),
    "consensus_task_arithmetic": ({"agree": 1.0}, "two experts must agree"),
    "subspace_boosting": ({"beta": 1.0}, "weak directions are raised"),
    "subspace_boosting_ties": ({"beta": 1.0, "density": 1.0}, "entries are trimmed and weak directions are raised"),
    "knots": ({"density": 1.0}, "half of the aligned entries are trimmed"),
}
NEVER_IDENTITY = {
    "iso_c": "all singular values are made equal",
}
SEEDS = st.integers(0, 2**20)
SIZES = st.tuples(st.integers(1, 3), st.integers(2, 7), st.integers(2, 7))
few = settings(max_examples=8, deadline=None, derandomize=True)


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def takes(name: str, parameter: str) -> bool:
    return any(own.name == parameter for own in registry.get(name).parameters)


def statistics(name: str, stack: torch.Tensor) -> torch.Tensor | None:
    """Something that could have been measured of the experts."""
    kind = registry.get(name).statistics
    if kind == "fisher":
        return stack.roll(1, dims=-1).square()
    if kind == "gram":
        inputs = numbers(5, len(stack), 20, stack.shape[-1])
        return inputs.transpose(1, 2) @ inputs / 20
    return torch.ones_like(stack, dtype=torch.bool) if kind == "mask" else None


def run(
    name: str,
    stack: torch.Tensor,
    params: Mapping[str, Any],
    experts: tuple[str, ...] | None = None,
    seed: int = 1,
    measured: torch.Tensor | None = None,
) -> torch.Tensor:
    method = registry.get(name)
    measured = statistics(name, stack) if measured is None else measured
    context = TensorContext(MATRIX, experts or EXPERTS[: len(stack)], seed, statistics=measured)
    return merge_stack(method, stack, context, method.validate(params))


def tolerance(name: str) -> dict[str, Any]:
    """What rounding leaves: of sums and products in fp32, or of a decomposition and its way there."""
    decomposes = registry.get(name).level in ("spectrum", "factors") or registry.get(name).finish or name == "regmean"
    return {"rtol": 1e-4, "atol": 1e-5} if decomposes else {"rtol": 2e-6, "atol": 0.0}


def settings_of(name: str) -> list[dict[str, Any]]:
    """A method's parameters in a few settings: the defaults, unequal weights, every preset."""
    if name == "slerp":
        return [{"t": 0.3}]
    method = registry.get(name)
    weights = {"weights": WEIGHTS} if takes(name, "weights") else {}
    return [weights, *(dict(preset) | weights for preset in method.presets.values())]


def write_adapters(folder: Path, count: int, shape: tuple[int, int], rank: int, modules: int = 2) -> Experts:
    """LoRA experts with ranks from ``rank`` on, and scalings of their own."""
    experts = []
    for place, name in enumerate(("code", "math", "safety", "law")[:count]):
        (folder / name).mkdir(parents=True)
        own = rank + place % 2
        weights = {}
        for module in range(modules):
            prefix = f"base_model.model.model.layers.{module}.mlp.up_proj"
            weights[f"{prefix}.lora_A.weight"] = numbers(31 * place + module, own, shape[1])
            weights[f"{prefix}.lora_B.weight"] = numbers(37 * place + module + 1000, shape[0], own)
        save_file(weights, folder / name / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": own, "lora_alpha": own * (1 + place), "target_modules": ["up_proj"]}
        (folder / name / "adapter_config.json").write_text(json.dumps(config))
        experts.append((name, folder / name))
    return experts


def dense(experts: Experts, module: int = 0) -> np.ndarray:
    """The updates of a module in float64 [experts, m, n], in the order of the experts' names."""
    updates = []
    for _, folder in sorted(experts):
        config = json.loads((folder / "adapter_config.json").read_text())
        weights = load_file(folder / "adapter_model.safetensors")
        prefix = f"base_model.model.model.layers.{module}.mlp.up_proj"
        a, b = (weights[f"{prefix}.lora_{factor}.weight"].double().numpy() for factor in "AB")
        updates.append(b @ a * config["lora_alpha"] / config["r"])
    return np.stack(updates)


def write_checkpoints(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> Experts:
    """A base and three experts in fp32; all numbers are multiples of 1/1024, so task vectors are exact."""
    base = {name: (numbers(place, *shape) * 512).round() / 64 for place, (name, shape) in enumerate(shapes.items())}
    written = []
    for place, name in enumerate(("base", *EXPERTS)):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps({"model_type": "qwen3_5_text"}))
        moved = {
            key: own + (numbers(100 * place + number, *shapes[key]) * 512).round() / 1024 if place else own
            for number, (key, own) in enumerate(base.items())
        }
        save_file(moved, folder / name / "model.safetensors")
        written.append((name, folder / name))
    return written


SHAPES = {
    "model.embed_tokens.weight": (9, 6),
    MATRIX: (11, 7),
    "model.layers.0.linear_attn.conv1d.weight": (5, 2, 4),
    "model.norm.weight": (13,),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Experts:
    """The base and the experts."""
    return write_checkpoints(tmp_path_factory.mktemp("checkpoints"), SHAPES)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Experts:
    return write_adapters(tmp_path_factory.mktemp("adapters"), 3, (14, 11), 2)


def merged_file(experts: Experts, name: str, params: Mapping[str, Any], **given: Any) -> bytes:
    """The task vector's file."""
    count = registry.get(name).count[1]
    chosen = experts if len(experts) <= count else experts[: int(count)]
    with tempfile.TemporaryDirectory() as folder:
        merge(chosen, method=name, params=params, space="delta", seed=3, out=Path(folder), output="delta", **given)
        return (Path(folder) / "task_vector.safetensors").read_bytes()


def merged_tensors(experts: Experts, name: str, params: Mapping[str, Any], **given: Any) -> dict[str, torch.Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        merge(experts, method=name, params=params, space="delta", seed=3, out=Path(folder), output="delta", **given)
        return load_file(Path(folder) / "task_vector.safetensors")


WITHOUT_DATA = [name for name in registry.names() if registry.get(name).statistics is None]
ON_CHECKPOINTS = [name for name in WITHOUT_DATA if registry.get(name).level != "factors"]


# One expert, equal experts, no expert


def test_every_method_says_whether_one_expert_comes_out_as_it_went_in() -> None:
    assert set(IDENTITY) | set(NEVER_IDENTITY) == set(registry.names())
    assert not set(IDENTITY) & set(NEVER_IDENTITY)


@pytest.mark.parametrize("name", IDENTITY)
@few
@given(seed=SEEDS, size=SIZES)
def test_one_expert_comes_out_as_it_went_in(name: str, seed: int, size: tuple[int, int, int]) -> None:
    stack = numbers(seed, 1, *size[1:])
    torch.testing.assert_close(run(name, stack, IDENTITY[name][0]), stack[0], **tolerance(name))


@pytest.mark.parametrize("name", [*NEVER_IDENTITY, *(name for name, (_, reason) in IDENTITY.items() if reason)])
def test_one_expert_is_changed_by_the_defaults_that_are_said_to_change_it(name: str) -> None:
    stack = numbers(0, 1, 8, 8)
    assert not torch.allclose(run(name, stack, {}), stack[0], rtol=1e-2)


AVERAGING = [name for name in IDENTITY if name.endswith("average") or name in ("greedy_soup", "model_stock", "slerp")]
AVERAGING += ["ties", "dare_ties", "localize_and_stitch", "fisher", "regmean", "localize_and_stitch_trained", "knots"]


@pytest.mark.parametrize("name", AVERAGING)
@few
@given(seed=SEEDS, size=SIZES)
def test_equal_experts_come_out_as_one(name: str, seed: int, size: tuple[int, int, int]) -> None:
    count = min(3, registry.get(name).count[1])
    stack = numbers(seed, 1, *size[1:]).repeat(int(count), 1, 1)
    torch.testing.assert_close(run(name, stack, IDENTITY[name][0]), stack[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", registry.names())
def test_experts_that_changed_nothing_leave_the_base(name: str) -> None:
    stack = torch.zeros(int(min(3, registry.get(name).count[1])), 6, 5)
    measured = torch.zeros(len(stack), 5, 5) if registry.get(name).statistics == "gram" else None
    for params in settings_of(name):
        if params.get("of") != "weights":
            assert torch.equal(run(name, stack, params, measured=measured), torch.zeros(6, 5))


@pytest.mark.parametrize("name", [name for name in registry.names() if takes(name, "lambda")])
@few
@given(seed=SEEDS, size=SIZES)
def test_lambda_zero_is_the_base(name: str, seed: int, size: tuple[int, int, int]) -> None:
    stack = numbers(seed, *size)
    assert not run(name, stack, {"lambda": 0.0}).any()
    small = run(name, stack, {"lambda": 0.25})
    torch.testing.assert_close(run(name, stack, {"lambda": -0.5}), -2 * small, **tolerance(name))


# Order and scale


@pytest.mark.parametrize("name", [name for name in registry.names() if name != "slerp"])
@few
@given(seed=SEEDS, size=SIZES)
def test_order_of_experts_does_not_count(name: str, seed: int, size: tuple[int, int, int]) -> None:
    stack = numbers(seed, 3, *size[1:])
    measured = statistics(name, stack)
    for params in settings_of(name):
        wanted = run(name, stack, params, measured=measured)
        for order in itertools.permutations(range(3)):
            places = list(order)
            found = run(
                name,
                stack[places],
                params,
                tuple(EXPERTS[place] for place in places),
                measured=None if measured is None else measured[places],
            )
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", WITHOUT_DATA)
def test_order_of_experts_does_not_count_to_the_bit_in_files(name: str, adapters: Experts) -> None:
    """SLERP goes from the first by name: there the order cannot even be said."""
    experts = adapters[: int(min(3, registry.get(name).count[1]))]
    for params in settings_of(name):
        found = {merged_file(list(order), name, params) for order in itertools.permutations(experts)}
        assert len(found) == 1


@pytest.mark.parametrize("name", [name for name in registry.names() if name not in ("fisher", "regmean")])
@few
@given(seed=SEEDS, exponent=st.integers(-18, 10))
def test_scaled_experts_merge_to_the_scaled_merge(name: str, seed: int, exponent: int) -> None:
    """By powers of 2, which rounds nothing. Rescaling to an L1 norm leaves tensors alone that are all but 0."""
    scale = 2.0**exponent
    stack = numbers(seed, int(min(3, registry.get(name).count[1])), 6, 5)
    for params in settings_of(name):
        merged = run(name, stack, params)
        close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6} if tolerance(name)["atol"] else {"rtol": 1e-6, "atol": 0.0}
        torch.testing.assert_close(run(name, scale * stack, params) / scale, merged, **close)


@pytest.mark.parametrize("name", [name for name in registry.names() if registry.get(name).level == "spectrum"])
@few
@given(seed=SEEDS, size=SIZES)
def test_spectral_methods_commute_with_rotations(name: str, seed: int, size: tuple[int, int, int]) -> None:
    """That is why they may work in the basis of the stacked factors."""
    stack = numbers(seed, *size).double()
    rows = torch.linalg.qr(numbers(seed + 1, size[1], size[1]).double()).Q
    columns = torch.linalg.qr(numbers(seed + 2, size[2], size[2]).double()).Q
    found = run(name, rows @ stack @ columns, {})
    torch.testing.assert_close(found, rows @ run(name, stack, {}) @ columns, rtol=1e-6, atol=1e-9)


# Spaces


ONE_EXPERT_IN_BOTH_SPACES: list[tuple[str, dict[str, Any]]] = [
    ("simple_average", {}),
    ("greedy_soup", {}),
    ("weighted_average", {"weights": {"code": 2.5}}),
    ("weighted_average", {"weights": {"code": -2.5}, "over": "sum"}),
    ("task_arithmetic", {"lambda": -0.5}),
    ("task_arithmetic", {"lambda": 0.5, "weights": {"code": 3.0}}),
    ("ties", {"density": 1.0, "lambda": -0.5}),
    ("ties", {"density": 1.0, "lambda": 0.5, "weights": {"code": 3.0}, "merge": "sum"}),
    ("ties", {"density": 1.0, "weights": {"code": -3.0}, "elect": "count"}),
    ("ties", {"density": 1.0, "weights": {"code": 3.0}, "vote": "weighted", "divide": "weights"}),
    ("dare", {"density": 1.0, "lambda": 0.3}),
    ("dare", {"density": 1.0, "weights": {"code": -2.0}, "rescale": "l1"}),
    ("dare_ties", {"density": 1.0, "lambda": -0.3}),
    ("dare_ties", {"density": 1.0, "weights": {"code": 3.0}, "vote": "weighted", "divide": "weights"}),
    ("breadcrumbs", {"density": 1.0, "lambda": -0.3, "weights": {"code": 2.0}}),
]


def test_every_method_in_adapter_space_is_compared_with_delta_space() -> None:
    both = {name for name in registry.names() if "adapter" in registry.get(name).spaces}
    assert {name for name, _ in ONE_EXPERT_IN_BOTH_SPACES} == both


@pytest.mark.parametrize(("name", "params"), ONE_EXPERT_IN_BOTH_SPACES, ids=str)
@few
@given(seed=SEEDS, scaling=st.floats(0.1, 8.0))
def test_one_expert_is_merged_alike_in_both_spaces(name: str, params: Any, seed: int, scaling: float) -> None:
    """Where nothing is trimmed: weights and lambda scale the update in the same way."""
    method = registry.get(name)
    values = method.validate(params)
    a, b = numbers(seed, 1, 3, 6), numbers(seed + 1, 1, 7, 3)
    factors: list[tuple[torch.Tensor, Literal["A", "B"]]] = [(a, "A"), (b, "B")]
    new_a, new_b = (
        merge_stack(method, factor, TensorContext("w", ("code",), 1, (scaling,), which), values)
        for factor, which in factors
    )
    wanted = merge_stack(method, scaling * b @ a, TensorContext("w", ("code",), 1), values)
    torch.testing.assert_close(new_b @ new_a, wanted, rtol=1e-4, atol=1e-4)


def at_true_rank(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    rank = int((s > 1e-9 * s[0]).sum())
    return u[:, :rank], s[:rank], vh[:rank]


def polar(matrix: np.ndarray) -> np.ndarray:
    p, _, qh = at_true_rank(matrix)
    return p @ qh


def tsv(stack: np.ndarray) -> np.ndarray:
    strongest = min(stack.shape[1:]) // len(stack)
    parts = [at_true_rank(own) for own in stack]
    left = np.hstack([u[:, :strongest] for u, _, _ in parts])
    right = np.vstack([vh[:strongest] for _, _, vh in parts])
    return polar(left) @ np.diag(np.concatenate([s[:strongest] for _, s, _ in parts])) @ polar(right)


def iso(stack: np.ndarray) -> np.ndarray:
    u, s, vh = at_true_rank(stack.sum(0))
    return s.mean() * u @ vh


def boosted(stack: np.ndarray) -> np.ndarray:
    u, s, vh = at_true_rank(stack.sum(0))
    cutoff = int(np.flatnonzero(s.cumsum() >= 0.2 * s.sum())[0])
    return u @ np.diag(np.maximum(s, s[cutoff])) @ vh


def aligned(stack: np.ndarray) -> np.ndarray:
    u, s, vh = at_true_rank(np.hstack(list(stack)))
    parts = torch.tensor(np.stack(np.hsplit(vh, len(stack))), dtype=torch.float32)
    return u @ np.diag(s) @ run("ties", parts, {}).double().numpy()


ON_FULL_MATRICES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tsv_merge": tsv,
    "iso_c": iso,
    "subspace_boosting": boosted,
    "knots": aligned,
}


def test_every_method_on_factors_is_compared_with_full_matrices() -> None:
    levels = {name: registry.get(name).level for name in registry.names()}
    assert set(ON_FULL_MATRICES) == {name for name, level in levels.items() if level in ("spectrum", "factors")}


@pytest.mark.parametrize("name", ON_FULL_MATRICES)
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_factors_give_what_full_matrices_give_at_their_true_rank(name: str, rank: int, tmp_path: Path) -> None:
    """Also where the ranks sum to more than the matrix has (5 + 6 + 5 > 11)."""
    experts = write_adapters(tmp_path / "experts", 3, (14, 11), rank)
    for output in ("delta", "adapter"):
        out = tmp_path / output
        merge(experts, method=name, params={}, space="delta", seed=None, out=out, output=output)
        for module in (0, 1):
            wanted = ON_FULL_MATRICES[name](dense(experts, module))
            found = (
                load_file(out / "task_vector.safetensors")[f"model.layers.{module}.mlp.up_proj.weight"].double().numpy()
                if output == "delta"
                else dense([("out", out)], module)[0]
            )
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("name", [name for name in WITHOUT_DATA if registry.get(name).level in ("experts", "entries")])
def test_adapters_merge_as_their_dense_updates(name: str, adapters: Experts) -> None:
    experts = adapters[: int(min(3, registry.get(name).count[1]))]
    method = registry.get(name)
    for params in settings_of(name):
        if "model" in (params.get("trim"), "model" if params.get("zero") == "majority" else None):
            params = {**params, "trim": "tensor", "zero": "plus"}
        found = merged_tensors(experts, name, params)
        if name == "localize_and_stitch":
            # It ranks over the model: both modules as one tensor.
            stacks = {"all": np.concatenate([dense(experts, module) for module in (0, 1)], axis=1)}
            found = {"all": torch.cat([found[key] for key in sorted(found)])}
        else:
            stacks = {f"model.layers.{module}.mlp.up_proj.weight": dense(experts, module) for module in (0, 1)}
        for tensor, updates in stacks.items():
            stack = torch.tensor(updates, dtype=torch.float32)
            context = TensorContext(tensor, EXPERTS[: len(stack)], 3)
            wanted = merge_stack(method, stack, context, method.validate(params))
            torch.testing.assert_close(found[tensor], wanted, rtol=1e-4, atol=1e-4)


# Threads, blocks, shapes


@pytest.mark.parametrize("name", WITHOUT_DATA)
def test_threads_do_not_change_a_bit(name: str, adapters: Experts, checkpoints: Experts) -> None:
    (_, base), *experts = checkpoints
    for params in settings_of(name):
        pools = [(adapters, None)] if name == "knots" else [(adapters, None), (experts, base)]
        for pool, folder in pools:
            one, two = (merged_file(pool, name, params, base=folder, threads=threads) for threads in (1, 2))
            assert one == two


@pytest.mark.parametrize("name", ON_CHECKPOINTS)
def test_blocks_do_not_change_the_result(name: str, checkpoints: Experts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks are the same to the bit; sums over a tensor are added up in another order."""
    (_, base), *experts = checkpoints
    experts = experts[: int(min(3, registry.get(name).count[1]))]
    for params in settings_of(name):
        whole = merged_tensors(experts, name, params, base=base)
        for block in (1, 20):
            with monkeypatch.context() as patch:
                patch.setattr("mergetime.merging.pool.BLOCK", {"cpu": block})
                found = merged_tensors(experts, name, params, base=base)
            for tensor, own in whole.items():
                if registry.get(name).level == "entries" and not registry.get(name).finish:
                    assert torch.equal(found[tensor] == 0, own == 0)
                torch.testing.assert_close(found[tensor], own, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ON_CHECKPOINTS)
def test_a_tensor_without_dimensions_is_one_of_one_entry(name: str, tmp_path: Path) -> None:
    for label, shape in (("none", ()), ("one", (1,))):
        write_checkpoints(tmp_path / label, {"model.layers.0.linear_attn.dt_bias": shape, "model.norm.weight": (5,)})
    names = EXPERTS[: int(min(3, registry.get(name).count[1]))]
    for params in settings_of(name):
        none, one = (
            merged_tensors(
                [(own, tmp_path / label / own) for own in names], name, params, base=tmp_path / label / "base"
            )
            for label in ("none", "one")
        )
        assert none["model.layers.0.linear_attn.dt_bias"].shape == ()
        torch.testing.assert_close(
            none["model.layers.0.linear_attn.dt_bias"],
            one["model.layers.0.linear_attn.dt_bias"][0],
            rtol=1e-6,
            atol=1e-7,
        )


# Chance


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("dare", {"density": 0.2}),
        ("dare", {"density": 0.7}),
        ("dare_ties", {"density": 0.4}),
        ("della", {"density": 0.5, "epsilon": 0.3}),
        ("della", {"density": 0.2, "epsilon": 0.1}),
        ("della_linear", {"density": 0.2, "epsilon": 0.1}),
    ],
)
def test_dropping_keeps_the_mean(name: str, params: dict[str, Any]) -> None:
    """Over many seeds, entry by entry, within 5 standard errors; of one expert, as elections depend on what is left."""
    stack = numbers(0, 1, 4, 6)
    draws = torch.stack([run(name, stack, params, seed=seed) for seed in range(600)]).double()
    error = draws.std(dim=0) / math.sqrt(len(draws))
    assert bool((error > 0).all())
    assert float(((draws.mean(dim=0) - stack[0]).abs() / error).max()) < 5


def test_dropping_keeps_the_mean_of_a_weighted_sum() -> None:
    stack = numbers(0, 3, 4, 6)
    params = {"density": 0.4, "lambda": 0.5, "weights": WEIGHTS}
    draws = torch.stack([run("dare", stack, params, seed=seed) for seed in range(600)]).double()
    wanted = run("dare", stack, {**params, "density": 1.0})
    error = draws.std(dim=0) / math.sqrt(len(draws))
    assert float(((draws.mean(dim=0) - wanted).abs() / error).max()) < 5


def test_experts_and_neighbours_are_dropped_independently() -> None:
    """Masks of two experts, and of entries side by side, agree as often as chance says."""
    ones = torch.ones(1, 200, 100)
    masks = [run("dare", ones, {"density": 0.5}, (expert,)).ne(0).double() for expert in EXPERTS]
    pairs = [*itertools.combinations(masks, 2), (masks[0][:, 1:], masks[0][:, :-1]), (masks[0][1:], masks[0][:-1])]
    for one, other in pairs:
        assert abs(float((one == other).double().mean()) - 0.5) < 5 * 0.5 / math.sqrt(one.numel())


# Decompositions


def by_gesvd(matrix: torch.Tensor, full_matrices: bool = True) -> tuple[torch.Tensor, ...]:
    found = scipy.linalg.svd(matrix.numpy(), full_matrices=full_matrices, lapack_driver="gesvd")
    return tuple(torch.from_numpy(np.ascontiguousarray(part)) for part in found)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Experts:
    """Four experts of rank 8 and 9 on a 256 x 256 matrix."""
    return write_adapters(tmp_path_factory.mktemp("large"), 4, (256, 256), 8, modules=1)


def change_by_driver(name: str, experts: Experts, monkeypatch: pytest.MonkeyPatch) -> float:
    """How far two LAPACK drivers are apart, relative to the result."""
    tensor = "model.layers.0.mlp.up_proj.weight"
    one = merged_tensors(experts, name, {})[tensor]
    with monkeypatch.context() as patch:
        patch.setattr(torch.linalg, "svd", by_gesvd)
        other = merged_tensors(experts, name, {})[tensor]
    return float((one - other).norm() / one.norm())


@pytest.mark.parametrize("name", [*ON_FULL_MATRICES, "subspace_boosting_ties"])
def test_two_drivers_of_the_decomposition_agree(name: str, large: Experts, monkeypatch: pytest.MonkeyPatch) -> None:
    assert change_by_driver(name, large, monkeypatch) < 1e-5


def test_beyond_the_true_rank_two_drivers_do_not_agree(large: Experts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "RANK_TOLERANCE", 0.0)
    assert change_by_driver("tsv_merge", large, monkeypatch) > 0.1
