"""Presets against their sources: PEFT itself, and what the public code of authors and of MergeBench does.

mergekit is a program of its own: test_merging_mergekit.py.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.utils import merge_utils
from safetensors.torch import load_file, save_file

from mergetime.artifacts.adapters import load_delta
from mergetime.merging import registry
from mergetime.merging.engine import merge, merge_stack
from mergetime.merging.method import TensorContext
from mergetime.merging.methods.dare import uniforms
from tests.unit import authors, presets

EXPERTS = ("code", "math", "safety")
SEED = 5
WEIGHTS = {"code": 0.5, "math": 1.5, "safety": 0.75}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
UNCHANGED = "model.layers.0.post_attention_layernorm.weight"
LINEAR = {
    "model.layers.0.self_attn.q_proj.weight": (18, 18),
    "model.layers.0.mlp.up_proj.weight": (30, 18),
    "model.layers.0.mlp.down_proj.weight": (18, 30),
}
SHAPES: dict[str, tuple[int, ...]] = {
    HEAD: (50, 18),
    EMBEDDING: (50, 18),
    "model.layers.0.input_layernorm.weight": (18,),
    **LINEAR,
    UNCHANGED: (18,),
    "model.norm.weight": (18,),
}
Model = dict[str, np.ndarray]
Merged = dict[str, np.ndarray]


def task_vectors(seed: int, steps: int) -> Model:
    """Multiples of 1/steps, so that sums in fp32 are exact; few steps make many magnitudes equal."""
    generator = np.random.default_rng(seed)
    made = {name: np.round(generator.standard_normal((3, *shape)) * steps) / steps for name, shape in SHAPES.items()}
    return made | {UNCHANGED: made[UNCHANGED] * 0}


COARSE = task_vectors(0, 8)
"""Every magnitude occurs many times, at each threshold too, and many votes end in 0."""
FINE = task_vectors(1, 1 << 16)
"""Almost no magnitude occurs twice."""
BASE = {name: np.round(np.random.default_rng(2).standard_normal(shape) * 64) / 16 for name, shape in SHAPES.items()}


def write(folder: Path, model: Model) -> tuple[Path, list[tuple[str, Path]]]:
    """The base and the experts as checkpoints in fp32."""
    for place, name in enumerate(("base", *EXPERTS)):
        (folder / name).mkdir()
        config = {"model_type": "llama", "dtype": "float32", "tie_word_embeddings": False}
        (folder / name / "config.json").write_text(json.dumps(config))
        weights = {key: own + (model[key][place - 1] if place else 0) for key, own in BASE.items()}
        save_file({key: torch.tensor(own).float() for key, own in weights.items()}, folder / name / "model.safetensors")
    return folder / "base", [(name, folder / name) for name in EXPERTS]


def ours(folder: Path, model: Model, method: str, preset: str | None, **params: Any) -> Merged:
    """The merged update of a whole model, from files to files."""
    base, experts = write(folder, model)
    statistics = {name: write_grams(folder, place) for place, name in enumerate(EXPERTS)}
    named = {key.rstrip("_"): value for key, value in params.items()}
    given: dict[str, Any] = {"space": "delta", "seed": SEED, "output": "delta"}
    given |= {"statistics": statistics if registry.get(method).statistics else None}
    merge(experts, method=method, params=named, preset=preset, base=base, out=folder / "out", **given)
    return {name: own.numpy() for name, own in load_file(folder / "out" / "task_vector.safetensors").items()}


def grams() -> Model:
    """Of inputs of each linear layer [experts, inputs, inputs], in fp32."""
    generator = np.random.default_rng(3)
    inputs = {name: generator.standard_normal((3, 90, shape[1])) for name, shape in LINEAR.items()}
    return {name: (own.transpose(0, 2, 1) @ own / 90).astype(np.float32).astype(float) for name, own in inputs.items()}


def write_grams(folder: Path, place: int) -> Path:
    """What was measured of an expert."""
    path = folder / f"{EXPERTS[place]}.gram"
    save_file({name: torch.tensor(own[place]).float() for name, own in grams().items()}, path)
    return path


def drawn(name: str, shape: Sequence[int]) -> np.ndarray:
    """The uniform numbers that decide about each entry of the experts' task vectors."""
    count = int(np.prod(shape[1:]))
    rows = [uniforms(SEED, expert, name, 0, count) for expert in EXPERTS]
    return np.stack(rows).reshape(shape) / 2.0**16


def mergebench(merge: Callable[[Model], Merged], *, ranks_head: bool = True) -> Callable[[Model], Merged]:
    """Embeddings are left out of the vector, and of what comes out embeddings and the head are not added."""

    def merged(model: Model) -> Merged:
        left_out = {EMBEDDING} if ranks_head else {EMBEDDING, HEAD}
        result = merge({name: stack for name, stack in model.items() if name not in left_out})
        return result | {name: np.zeros(SHAPES[name]) for name in (EMBEDDING, HEAD)}

    return merged


def whole(function: Callable[..., np.ndarray], *arguments: Any) -> Callable[[Model], Merged]:
    return lambda model: authors.flattened(model, lambda rows: function(rows, *arguments))


def alike(function: Callable[..., np.ndarray], *arguments: Any) -> Callable[[Model], Merged]:
    return lambda model: authors.by_tensor(model, lambda stack: function(stack, *arguments))


def random(density: float) -> Callable[[Model], Merged]:
    return lambda model: {
        name: authors.dropped(stack, drawn(name, stack.shape), density).sum(axis=0) for name, stack in model.items()
    }


def della(model: Model) -> Merged:
    weights = list(WEIGHTS.values())
    return {name: authors.della(stack, drawn(name, stack.shape), 0.7, 0.07, weights) for name, stack in model.items()}


def regmean(reduction: float) -> Callable[[Model], Merged]:
    def merged(model: Model) -> Merged:
        known = grams()
        return {
            name: authors.regmean(stack, known[name], reduction) if name in known else stack.mean(axis=0)
            for name, stack in model.items()
        }

    return merged


def without(*names: str) -> Callable[[Callable[[Model], Merged]], Callable[[Model], Merged]]:
    """Tensors that are no part of what is merged."""
    return lambda merge: (
        lambda model: {
            **merge({name: stack for name, stack in model.items() if name not in names}),
            **{name: np.zeros(SHAPES[name]) for name in names},
        }
    )


def model_stock(stack: np.ndarray) -> np.ndarray:
    """Equation 4 with the mean cosine of the pairs; a tensor that nobody changed stays."""
    rows = stack.reshape(3, -1)
    norms = np.linalg.norm(rows, axis=1)
    if not norms.any():
        return stack[0]
    cosines = rows @ rows.T / np.outer(norms, norms)
    common = cosines[np.triu_indices(3, 1)].mean()
    share: np.ndarray = 3 * common / (1 + 2 * common) * stack.mean(axis=0)
    return share


# By method and preset: task vectors, what is given beside the preset, and the source.
Source = tuple[Model, dict[str, Any], Callable[[Model], Merged]]
OF_AUTHORS: dict[tuple[str, str], Source] = {
    ("task_arithmetic", "authors"): (COARSE, {}, alike(np.sum, 0)),
    ("task_arithmetic", "mergebench"): (COARSE, {}, mergebench(alike(np.sum, 0))),
    ("ties", "authors"): (COARSE, {}, whole(authors.ties, 0.2)),
    ("ties", "mergebench"): (COARSE, {}, mergebench(whole(authors.ties, 0.2, "sum"))),
    ("dare", "authors"): (COARSE, {}, random(0.1)),
    ("dare", "mergebench"): (COARSE, {}, mergebench(random(0.2))),
    ("della", "authors"): (FINE, {"density": 0.7, "epsilon": 0.07, "weights": WEIGHTS}, della),
    ("breadcrumbs", "authors"): (FINE, {}, alike(authors.breadcrumbs, 0.15, 0.006)),
    # What is not trained is no part of it.
    ("localize_and_stitch", "authors"): (
        COARSE,
        {},
        without(EMBEDDING, HEAD, UNCHANGED)(whole(authors.stitched, 0.05)),
    ),
    ("localize_and_stitch", "mergebench"): (COARSE, {}, mergebench(whole(authors.stitched_by_mergebench, 0.1))),
    ("consensus_task_arithmetic", "authors"): (COARSE, {"selectivity": 0.5}, whole(authors.consensus, 0.5)),
    ("consensus_task_arithmetic", "mergebench"): (COARSE, {}, mergebench(whole(authors.consensus, 0.2))),
    ("model_stock", "authors"): (FINE, {}, alike(model_stock)),
    ("tsv_merge", "authors"): (FINE, {}, lambda model: authors.spectral(model, authors.tsv)),
    ("iso_c", "authors"): (FINE, {}, lambda model: authors.spectral(model, authors.iso)),
    ("regmean", "authors"): (FINE, {}, regmean(0.1)),
    ("regmean", "mergebench"): (FINE, {}, mergebench(regmean(0.5))),
}
STUDIES = {("task_arithmetic", "in_the_wild"), ("subspace_boosting", "in_the_wild")}
STUDIES |= {("subspace_boosting_ties", "in_the_wild")}
"""Presets that are settings of a study, not of a program."""
PEFT = [("ties", "peft"), ("dare", "peft"), ("dare_ties", "peft")]


def test_every_preset_is_on_the_page_and_compared_with_its_source() -> None:
    there = {(name, preset) for name in registry.names() for preset in registry.get(name).presets}
    assert there == presets.STATED.keys()
    mergekit = {(name, preset) for name, preset in there if preset == "mergekit"}
    assert there == OF_AUTHORS.keys() | set(PEFT) | mergekit | STUDIES
    assert {key for key, error in presets.STATED.items() if error is None} == STUDIES


@pytest.mark.parametrize(
    ("key", "kind"),
    [(key, kind) for key, (model, _, _) in OF_AUTHORS.items() for kind in ("coarse", "fine")[model is FINE :]],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_preset_is_what_its_source_does(key: tuple[str, str], kind: str, tmp_path: Path) -> None:
    """Among equal magnitudes, and where one entry more or less can be seen."""
    _, given, source = OF_AUTHORS[key]
    model = COARSE if kind == "coarse" else FINE
    found = ours(tmp_path, model, *key, **given)
    presets.check(*key, presets.distance(found, source(model)))


@pytest.mark.parametrize("key", [key for key in OF_AUTHORS if registry.get(key[0]).presets[key[1]]], ids="-".join)
def test_a_preset_that_sets_something_is_not_the_default(key: tuple[str, str], tmp_path: Path) -> None:
    """Agreeing with the source would say little where the default does so, too."""
    model, given, source = OF_AUTHORS[key]
    found = ours(tmp_path, model, key[0], None, **given)
    assert presets.distance(found, source(model)) > 1e-3


@pytest.mark.parametrize(("method", "preset"), PEFT)
def test_a_preset_is_what_peft_does(method: str, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT's own functions, with the random numbers of ours."""
    share = torch.tensor(list(WEIGHTS.values()))
    wanted = {}
    for name, stack in FINE.items():
        rows = iter(torch.tensor(drawn(name, stack.shape)))
        monkeypatch.setattr(torch, "bernoulli", lambda input, rows=rows: (next(rows) < input).float())
        tensors = list(torch.tensor(stack).float())
        function = {"ties": merge_utils.ties, "dare": merge_utils.dare_linear, "dare_ties": merge_utils.dare_ties}[
            method
        ]
        wanted[name] = function(tensors, share, 0.4).numpy()
    monkeypatch.undo()
    found = ours(tmp_path, FINE, method, preset, density=0.4, weights=WEIGHTS)
    presets.check(method, preset, presets.distance(found, wanted))


def test_a_vote_of_0_with_a_majority_of_0_is_minus() -> None:
    """Official: a sign of 0 is none that is more than 0."""
    stack = np.array([[1.0, -2.0, 3.0, -3.0], [-1.0, 2.0, 0.0, 0.0]])
    method = registry.get("ties")
    params = method.validate({"density": 0.99}, "authors")
    found = merge_stack(method, torch.tensor(stack).float(), TensorContext("w", EXPERTS[:2]), params)
    wanted = authors.ties(stack, 0.99)
    assert wanted.tolist() == [-1.0, -2.0, 3.0, -3.0]
    assert found.tolist() == wanted.tolist()


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "regmean", "localize_and_stitch"])
def test_embeddings_and_head_stay_those_of_the_base(method: str, tmp_path: Path) -> None:
    """Their bytes do, in a checkpoint; and a head is ranked where it is a tensor of its own."""
    base, experts = write(tmp_path, COARSE)
    statistics = {name: write_grams(tmp_path, place) for place, name in enumerate(EXPERTS)}
    given: dict[str, Any] = {"space": "delta", "seed": 0, "output": "checkpoint", "base": base}
    needed = statistics if registry.get(method).statistics else None
    merge(experts, method=method, params={}, preset="mergebench", out=tmp_path / "out", statistics=needed, **given)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "out"))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {EMBEDDING, HEAD, UNCHANGED}


@pytest.mark.parametrize("space", ["delta", "adapter"])
def test_adapters_on_the_head_leave_it_alone(space: str, tmp_path: Path) -> None:
    experts = []
    for place, name in enumerate(EXPERTS):
        folder, factors = tmp_path / name, {}
        folder.mkdir()
        for number, module in enumerate(("lm_head", "model.layers.0.mlp.up_proj")):
            generator = torch.Generator().manual_seed(10 * place + number)
            for factor, shape in (("A", (2, 18)), ("B", (30, 2))):
                key = f"base_model.model.{module}.lora_{factor}.weight"
                factors[key] = torch.randn(shape, generator=generator)
        save_file(factors, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["lm_head", "up_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        experts.append((name, folder))
    given: dict[str, Any] = {"method": "task_arithmetic", "params": {}, "space": space, "seed": 0, "output": "adapter"}
    updates = {}
    for preset in (None, "mergebench"):
        merge(experts, preset=preset, out=tmp_path / str(preset), **given)
        updates[preset] = dict(load_delta(tmp_path / str(preset)))
    assert not updates["mergebench"]["lm_head.weight"].any()
    assert updates[None]["lm_head.weight"].any()
    up = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(updates["mergebench"][up], updates[None][up])


def test_explain_says_what_differs() -> None:
    """Below each preset, wrapped, what its source does otherwise."""
    for name in registry.names():
        method = registry.get(name)
        assert method.remarks.keys() <= method.presets.keys()
        text = " ".join(registry.explain(name).split())
        for remark in method.remarks.values():
            assert remark in text
