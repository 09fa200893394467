"""The registry of merge methods: ids, parameters, bounds, and that it costs no import of torch."""

import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mergetime.merging import methods, registry
from mergetime.merging.engine import merge_stack
from mergetime.merging.method import MergeMethod, TensorContext

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_methods_of_all_studies_are_there() -> None:
    duration = {"dare_ties", "greedy_soup", "simple_average", "task_arithmetic", "ties"}
    in_the_wild = {"model_stock", "tsv_merge", "iso_c", "subspace_boosting", "subspace_boosting_ties"}
    mergebench = {
        "dare",
        "consensus_task_arithmetic",
        "localize_and_stitch",
        "fisher",
        "regmean",
        "localize_and_stitch_trained",
    }
    others = {"weighted_average", "slerp", "breadcrumbs", "breadcrumbs_ties", "della", "della_linear", "knots"}
    assert set(registry.names()) == duration | in_the_wild | mergebench | others
    assert {registry.get(name).id for name in registry.names()} == set(registry.names())


def test_every_file_of_the_folder_is_found() -> None:
    files = [module.name for module in pkgutil.iter_modules(methods.__path__)]
    functions = {registry.get(name).function.__module__.rpartition(".")[2] for name in registry.names()}
    assert functions == set(files)


def test_validating_a_config_does_not_import_torch() -> None:
    code = (
        "import sys; from mergetime.merging import registry;"
        "[registry.get(name).validate({}) for name in registry.names()]; registry.explain('ties');"
        "sys.exit('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_defaults_are_filled_in_and_numbers_become_floats() -> None:
    assert registry.get("breadcrumbs").validate({}) == {
        "density": 0.85,
        "gamma": 0.01,
        "lambda": 1.0,
        "weights": None,
        "per": "tensor",
        "excess": "gamma",
    }
    filled = registry.get("task_arithmetic").validate({"lambda": 2})
    assert filled == {"lambda": 2.0, "over": "sum", "weights": None, "tables": "merged"}
    assert isinstance(filled["lambda"], float)
    assert registry.get("simple_average").validate({}) == {}


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        ("ties", {"density": 1.5}, "density: 1.5 is outside (0, 1]"),
        ("ties", {"density": 0}, "density: 0 is outside (0, 1]"),
        ("dare_ties", {"density": float("nan")}, "density: nan is outside (0, 1]"),
        ("ties", {"lambda": float("inf")}, "lambda: inf is outside (-inf, inf)"),
        ("ties", {"density": "half"}, "density: 'half' is not a number"),
        ("ties", {"density": True}, "density: True is not a number"),
        ("task_arithmetic", {"over": "median"}, "over: 'median' is not one of sum, mean"),
        ("ties", {"densty": 0.5}, "ties: unknown parameter 'densty'; did you mean 'density'?"),
        ("iso_c", {"x": 0.5}, "iso_c: unknown parameter 'x'; known: lambda, matrices, rounding"),
        ("ties", {"weights": 2}, "weights: 2 is no mapping of experts to numbers"),
        ("ties", {"weights": {"math": "x"}}, "weights.math: 'x' is not a number"),
        ("ties", {"weights": {"math": float("inf")}}, "weights.math: inf is outside (-inf, inf)"),
        ("simple_average", {"density": 0.5}, "simple_average: unknown parameter 'density'; known: none"),
        (
            "della",
            {"density": 0.1},
            "della: epsilon: 0.15 must be less than density and than 1 - density, and density is 0.1",
        ),
        (
            "della",
            {"density": 0.9, "epsilon": 0.2},
            "della: epsilon: 0.2 must be less than density and than 1 - density, and density is 0.9",
        ),
        (
            "della",
            {"density": {"math": 1.0, "code": 0.1}, "epsilon": {"math": 0.1, "code": 0.3}},
            "della: epsilon: 0.3 must be less than density and than 1 - density, and density is 0.1",
        ),
        ("ties", {"density": {"math": 1.5}}, "density.math: 1.5 is outside (0, 1]"),
        ("ties", {"lambda": {"math": 1.0}}, "lambda: {'math': 1.0} is not a number"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(method: str, params: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        registry.get(method).validate(params)


@pytest.mark.parametrize("params", [{"density": 1.0}, {"density": 0.1, "epsilon": 0.09}, {"density": 0.2}])
def test_probabilities_of_della_may_come_near_0_and_1(params: dict[str, float]) -> None:
    assert registry.get("della").validate(params)["density"] == params["density"]


def test_unknown_method_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"^unknown merge method 'tie'; did you mean 'ties'\?$"):
        registry.get("tie")


def test_unknown_space_names_those_that_work() -> None:
    with pytest.raises(ValueError, match=r"^ties: does not work in space 'core'; it works in adapter, delta$"):
        registry.get("ties").check_space("core")


@pytest.mark.parametrize("name", registry.names())
def test_explain_names_paper_parameters_and_spaces(name: str) -> None:
    text = registry.explain(name)
    assert text.startswith(name)
    for needed in ("Parameters:", "Spaces:", "delta", "tau"):
        assert needed in text
    assert "arXiv" in text or "SIGGRAPH" in text
    for parameter in registry.get(name).parameters:
        assert f"{parameter.name} = {parameter.default}, in {parameter.domain}" in text


def test_stochastic_methods_say_so() -> None:
    stochastic = [name for name in registry.names() if registry.get(name).stochastic]
    assert stochastic == ["dare", "dare_ties", "della", "della_linear"]


def test_a_reserved_word_reaches_the_function_with_an_underscore() -> None:
    def scale(stack: torch.Tensor, _: TensorContext, lambda_: float) -> torch.Tensor:
        return stack[0] * lambda_

    merged = merge_stack(
        MergeMethod("probe", "test", scale), torch.ones(1, 2), TensorContext("w", ("math",)), {"lambda": 2.0}
    )
    assert merged.tolist() == [2.0, 2.0]


def test_a_preset_gives_way_to_what_is_given_and_an_unknown_one_is_named() -> None:
    ties = registry.get("ties")
    assert (ties.validate({}, "authors")["density"], ties.validate({"density": 0.3}, "authors")["density"]) == (
        0.2,
        0.3,
    )
    assert ties.validate({}, "mergekit")["vote"] == "weighted"
    with pytest.raises(ValueError, match=r"^ties: unknown preset 'mergekitt'; did you mean 'mergekit'\?$"):
        ties.validate({}, "mergekitt")


@pytest.mark.parametrize("name", registry.names())
def test_every_preset_sets_known_parameters(name: str) -> None:
    method = registry.get(name)
    for preset, values in method.presets.items():
        assert set(values) <= {parameter.name for parameter in method.parameters}
        assert method.validate({}, preset) is not None
