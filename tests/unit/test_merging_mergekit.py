"""Merges against mergekit, run as a program, and against PEFT's merge functions."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils import merge_utils
from safetensors.torch import load_file, save_file

from mergetime.merging import registry
from mergetime.merging.engine import merge, merge_stack
from mergetime.merging.method import TensorContext
from mergetime.merging.methods.dare import uniforms
from tests.unit import presets

EXPERTS = ("code", "math", "safety")
WEIGHTS = {"code": 0.5, "math": 1.4, "safety": -0.3}
POSITIVE = {"code": 0.5, "math": 1.5, "safety": 1.0}
ONES = dict.fromkeys(EXPERTS, 1.0)
HIDDEN, INNER, VOCABULARY, LAYERS = 24, 40, 50, 2
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "dtype": "float32",
}
SEED = 7
"""Of the random numbers; with other ones an entry may lie between a probability and the multiple of 1/65536 next to it."""


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
    "ties, told nothing": ("ties", {}, {}, each(ONES)),
    "dare_linear, told nothing": ("dare", {}, {}, each(ONES)),
    "dare_ties, told nothing": ("dare_ties", {}, {}, each(ONES)),
    "della, told nothing": ("della", {}, {}, each(ONES)),
    "breadcrumbs, told nothing": ("breadcrumbs", {}, {}, each(ONES)),
}
# mergekit is a program of its own here: it is never imported beside ours. Its random numbers are ours: of an entry a
# uniform number, which decides with mergekit's own probability.
DRIVER = """
import json
import sys
from pathlib import Path

import torch
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge
from mergekit.options import MergeOptions
from safetensors.torch import load_file

numbers = load_file(Path(sys.argv[1]) / "numbers.safetensors")
merge_group, coming = GeneralizedTaskArithmeticMerge.merge_group, []


def merge_named_group(self, group, /, **parameters):
    coming[:] = [f"{group.metadata.name} {Path(entry.id.model.path).name}" for entry in group.non_base]
    return merge_group(self, group, **parameters)


GeneralizedTaskArithmeticMerge.merge_group = merge_named_group
torch.bernoulli = lambda chance: (numbers[coming.pop(0)].view(chance.shape) < chance).to(chance.dtype)
options = MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False)
for path in sorted(Path(sys.argv[1]).glob("*.config")):
    run_merge(MergeConfiguration.model_validate(json.loads(path.read_text())), str(path.with_suffix("")), options)
"""


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "lm_head.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        sizes = {
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
            "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (INNER, HIDDEN),
            "mlp.up_proj": (INNER, HIDDEN),
            "mlp.down_proj": (HIDDEN, INNER),
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
        }
        found |= {f"model.layers.{layer}.{name}.weight": size for name, size in sizes.items()}
    return found


def write_checkpoint(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base of the Llama architecture and three experts with task vectors of full rank, by name."""
    folder = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(0)
    base = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes().items()}
    made = {"base": write_checkpoint(folder / "base", base)}
    # What experts share makes their cosines differ from 0, as Model Stock needs them.
    shared = {name: 0.04 * torch.randn(shape, generator=generator) for name, shape in shapes().items()}
    for place, name in enumerate(EXPERTS):
        weights = {
            key: base[key] + shared[key] + 0.02 * (2 + place) * torch.randn(base[key].shape, generator=generator)
            for key in base
        }
        made[name] = write_checkpoint(folder / name, weights)
    return made


@pytest.fixture(scope="session")
def theirs(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with mergekit's result for each of the cases."""
    folder = tmp_path_factory.mktemp("mergekit")
    numbers = {
        f"{key} {name}": torch.from_numpy(uniforms(SEED, name, key, 0, math.prod(shape)) / 2.0**16).float()
        for key, shape in shapes().items()
        for name in EXPERTS
    }
    save_file(numbers, folder / "numbers.safetensors")
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
        (folder / f"{case}.config").write_text(json.dumps(config))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(folder)], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return folder


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


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
