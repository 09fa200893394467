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
from mergetime.merging.method import Method, TensorContext

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_methods_of_the_duration_study_are_there() -> None:
    assert registry.names() == ["dare_ties", "greedy_soup", "simple_average", "task_arithmetic", "ties"]
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
    assert registry.get("ties").validate({}) == {"density": 0.5, "lambda": 1.0}
    filled = registry.get("task_arithmetic").validate({"lambda": 2})
    assert filled == {"lambda": 2.0, "over": "sum"}
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
        ("ties", {"x": 0.5}, "ties: unknown parameter 'x'; known: density, lambda"),
        ("simple_average", {"density": 0.5}, "simple_average: unknown parameter 'density'; known: none"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(method: str, params: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        registry.get(method).validate(params)


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
    for needed in ("arXiv", "Parameters:", "Spaces:", "adapter", "delta"):
        assert needed in text
    for parameter in registry.get(name).parameters:
        assert f"{parameter.name} = {parameter.default}, in {parameter.domain}" in text


def test_stochastic_methods_say_so() -> None:
    assert [name for name in registry.names() if registry.get(name).stochastic] == ["dare_ties"]


def test_a_reserved_word_reaches_the_function_with_an_underscore() -> None:
    def scale(stack: torch.Tensor, _: TensorContext, lambda_: float) -> torch.Tensor:
        return stack[0] * lambda_

    merged = Method("probe", "test", scale)(torch.ones(1, 2), TensorContext("w", ("math",), 1), {"lambda": 2.0})
    assert merged.tolist() == [2.0, 2.0]
