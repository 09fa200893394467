"""Merges against mergekit, run as a program, and against PEFT's merge functions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils import merge_utils
from safetensors.torch import load_file

from mergetime.merging import registry
from mergetime.merging.engine import merge, merge_stack
from mergetime.merging.method import TensorContext
from tests.unit import presets
from tests.unit.mergekit_models import EXPERTS, distance, run_mergekit, shapes, write_draws, write_models

WEIGHTS = {"code": 0.5, "math": 1.4, "safety": -0.3}
POSITIVE = {"code": 0.5, "math": 1.5, "safety": 1.0}
ONES = dict.fromkeys(EXPERTS, 1.0)
SEED = 7


def each(weights: dict[str, float], **more: float) -> dict[str, dict[str, float]]:
    """What mergekit is told of each model."""
    return {name: {"weight": weights[name], **more} for name in EXPERTS}


# By mergekit's name: ours, with what it is told beside the preset, and mergekit's: parameters of the merge, of each model.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, dict[str, Any]]]] = {
    "linear": ("weighted_average", {"weights": WEIGHTS}, {}, {name: {"weight": WEIGHTS[name]} for name in EXPERTS}),
    "task_arithmetic": (
        "task_arithmetic",
        {"weights": WEIGHTS, "lambda": 0.7},
        {"lambda": 0.7},
        {name: {"weight": WEIGHTS[name]} for name in EXPERTS},
    ),
    "ties": (
        "ties",
        {"weights": POSITIVE, "density": 0.3, "lambda": 0.8},
        {"lambda": 0.8},
        {name: {"weight": POSITIVE[name], "density": 0.3} for name in EXPERTS},
    ),
    "slerp": ("slerp", {"t": 0.3}, {"t": 0.3}, {"code": {}, "math": {}}),
    "model_stock": ("model_stock", {}, {}, {name: {} for name in EXPERTS}),
    "breadcrumbs": (
        "breadcrumbs",
        {"weights": WEIGHTS, "density": 0.6, "gamma": 0.05, "lambda": 1.2},
        {"lambda": 1.2},
        {name: {"weight": WEIGHTS[name], "density": 0.6, "gamma": 0.05} for name in EXPERTS},
    ),
    "breadcrumbs, too much": ("breadcrumbs", {"density": 0.7, "gamma": 0.6}, {}, each(ONES, density=0.7, gamma=0.6)),
    "dare_linear": (
        "dare",
        {"weights": WEIGHTS, "density": 0.3, "lambda": 0.7},
        {"lambda": 0.7},
        each(WEIGHTS, density=0.3),
    ),
    "dare_ties": (
        "dare_ties",
        {"weights": POSITIVE, "density": 0.375, "lambda": 0.8},
        {"lambda": 0.8},
        each(POSITIVE, density=0.375),
    ),
    "della": (
        "della",
        {"weights": POSITIVE, "density": 0.6, "epsilon": 0.2},
        {},
        each(POSITIVE, density=0.6, epsilon=0.2),
    ),
    "della_linear": (
        "della_linear",
        {"weights": WEIGHTS, "density": 0.6, "epsilon": 0.2},
        {},
        each(WEIGHTS, density=0.6, epsilon=0.2),
    ),
    "breadcrumbs_ties": (
        "breadcrumbs_ties",
        {"weights": POSITIVE, "density": 0.6, "gamma": 0.05},
        {},
        each(POSITIVE, density=0.6, gamma=0.05),
    ),
    "ties, told nothing": ("ties", {}, {}, each(ONES)),
    "dare_linear, told nothing": ("dare", {}, {}, each(ONES)),
    "dare_ties, told nothing": ("dare_ties", {}, {}, each(ONES)),
    "della, told nothing": ("della", {}, {}, each(ONES)),
    "breadcrumbs, told nothing": ("breadcrumbs", {}, {}, each(ONES)),
    "della_linear, told nothing": ("della_linear", {}, {}, each(ONES)),
    "breadcrumbs_ties, told nothing": ("breadcrumbs_ties", {}, {}, each(ONES)),
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def theirs(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with mergekit's result for each of the cases."""
    folder = tmp_path_factory.mktemp("mergekit")
    write_draws(folder, SEED)
    for case, (_, _, parameters, of_models) in CASES.items():
        method = case.partition(",")[0]
        config = {
            "merge_method": method,
            "dtype": "float32",
            "parameters": parameters,
            "models": [{"model": str(models[name]), "parameters": own} for name, own in of_models.items()],
        }
        if method != "linear":
            config["base_model"] = str(models["code" if method == "slerp" else "base"])
        (folder / f"{case}.yaml").write_text(json.dumps(config))
    run_mergekit(folder)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_checkpoints_are_those_of_mergekit(case: str, models: dict[str, Path], theirs: Path, tmp_path: Path) -> None:
    method, params, _, of_models = CASES[case]
    summary = merge(
        [(name, models[name]) for name in of_models],
        method=method,
        params=params,
        preset="mergekit" if "mergekit" in registry.get(method).presets else None,
        space="delta",
        seed=SEED,
        out=tmp_path,
        output="checkpoint",
        base=models["base"],
    )
    assert summary["entries"] == sum(torch.Size(shape).numel() for shape in shapes().values())
    wanted = load_file(theirs / case / "model.safetensors")
    found = load_file(tmp_path / "model.safetensors")
    base = load_file(models["base"] / "model.safetensors")
    assert found.keys() == wanted.keys() == base.keys()
    for name in wanted:
        assert distance(found[name], wanted[name]) < 1e-6, name
        # The update alone, which adding the base would hide.
        assert distance(found[name] - base[name], wanted[name] - base[name]) < 1e-5, name
    updates = [{name: (own[name] - base[name]).double().numpy() for name in base} for own in (found, wanted)]
    presets.check(method, "mergekit", presets.distance(*updates))


def test_what_mergekit_says_differs(models: dict[str, Path], theirs: Path) -> None:
    """Results differ from each other and from the base, or agreeing with them would say little."""
    told = [case for case in CASES if "nothing" not in case]
    folders = [models["base"], *(theirs / case for case in told)]
    ends = [load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"] for folder in folders]
    for place, first in enumerate(ends):
        for second in ends[place + 1 :]:
            assert distance(first, second) > 1e-3


@pytest.fixture
def stack() -> torch.Tensor:
    return torch.randn(3, 37, 29, generator=torch.Generator().manual_seed(4))


def ours(name: str, stack: torch.Tensor, **params: object) -> torch.Tensor:
    method = registry.get(name)
    values = method.validate({key.rstrip("_"): value for key, value in params.items()}, "peft")
    return merge_stack(method, stack, TensorContext("w", EXPERTS, 1), values)


@pytest.mark.parametrize("weights", [dict.fromkeys(EXPERTS, 1.0), POSITIVE, WEIGHTS])
@pytest.mark.parametrize("density", [0.2, 0.5])
@pytest.mark.parametrize(("elect", "theirs_elect"), [("sum", "total"), ("count", "frequency")])
def test_ties_is_that_of_peft(
    stack: torch.Tensor, weights: dict[str, float], density: float, elect: str, theirs_elect: Any
) -> None:
    wanted = merge_utils.ties(list(stack), torch.tensor(list(weights.values())), density, theirs_elect)
    found = ours("ties", stack, weights=weights, density=density, elect=elect)
    assert distance(found, wanted) < 1e-6


@pytest.mark.parametrize("weights", [dict.fromkeys(EXPERTS, 1.0), WEIGHTS])
@pytest.mark.parametrize(("elect", "theirs_elect"), [("sum", "total"), ("count", "frequency")])
def test_dare_ties_that_drops_nothing_is_that_of_peft(
    stack: torch.Tensor, weights: dict[str, float], elect: str, theirs_elect: Any
) -> None:
    with pytest.warns(UserWarning, match="no pruning"):
        wanted = merge_utils.dare_ties(list(stack), torch.tensor(list(weights.values())), 1.0, theirs_elect)
    assert distance(ours("dare_ties", stack, weights=weights, density=1.0, elect=elect), wanted) < 1e-6


def test_sums_are_those_of_peft(stack: torch.Tensor) -> None:
    method = registry.get("task_arithmetic")
    context = TensorContext("w", EXPERTS, 1)
    found = merge_stack(method, stack, context, method.validate({"weights": WEIGHTS}))
    wanted = merge_utils.task_arithmetic(list(stack), torch.tensor(list(WEIGHTS.values())))
    assert distance(found, wanted) < 1e-6
    with pytest.warns(UserWarning, match="no pruning"):
        dropped = merge_utils.dare_linear(list(stack), torch.tensor(list(WEIGHTS.values())), 1.0)
    assert distance(ours("dare", stack, weights=WEIGHTS, density=1.0), dropped) < 1e-6


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_trimmed_sums_are_those_of_peft(stack: torch.Tensor, density: float) -> None:
    """PEFT's magnitude_prune is Breadcrumbs that removes no large entries."""
    method = registry.get("breadcrumbs")
    values = method.validate({"weights": WEIGHTS, "density": density, "gamma": 0.0})
    found = merge_stack(method, stack, TensorContext("w", EXPERTS, 1), values)
    wanted = merge_utils.magnitude_prune(list(stack), torch.tensor(list(WEIGHTS.values())), density)
    assert distance(found, wanted) < 1e-6
