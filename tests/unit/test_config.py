"""The config: what it refuses, in which words, and that its schema is fresh."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from mergetime.config.reading import load, parse, schema
from mergetime.config.study import Study
from mergetime.core.duration_ids import multiple_of
from mergetime.core.errors import UserError
from mergetime.study.durations import durations
from mergetime.study.methods import merges_of
from mergetime.study.pools import pools, pools_on
from mergetime.study.subjects import subjects

ROOT = Path(__file__).parents[2]
# The rehearsal is laid over the paper study and is none by itself.
CONFIGS = sorted({*(ROOT / "config").glob("*.yaml")} - {ROOT / "config/rehearsal.yaml"})
HASH = "0123456789" * 4


def study() -> dict[str, Any]:
    """A small valid study."""
    pinned = {"dataset": "o/d", "revision": HASH}
    domain = pinned | {"format": "aya", "train": 2, "validation": 2}
    return {
        "study": "tiny",
        "bases": {"b": {"model": "o/b", "revision": HASH}},
        "domains": {"math": dict(domain), "code": dict(domain), "law": dict(domain)},
        "experts": {"train": {"save_every": 10}, "durations": {"multiples_of_optimum": [0.25, 1, 5]}},
        "pools": {"same": {"experts": "all", "at": "each_duration"}},
        "methods": {"ties": {"method": "ties", "space": "delta", "density": 0.5}},
        "benchmarks": {"gsm8k": pinned | {"task": "gsm8k", "metric": "exact_match,none"}},
        "suites": {"validation": {}, "test": {"math": "gsm8k"}},
        "plan": {},
    }


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    data = study()
    change(data)
    return data


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_in_the_repository_is_valid(path: Path) -> None:
    assert subjects(load(path))


def test_the_schema_is_fresh() -> None:
    assert (ROOT / "config" / "schema.json").read_text() == schema(), "run: make schema"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(pool={}), "c.yaml: pool: unknown key; did you mean 'pools'?"),
        (lambda d: d["domains"]["math"].update(trian=3), "c.yaml: domains.math.trian: unknown key; did you mean 'train'?"),
        (lambda d: d["experts"]["train"].update(rnak=3), "c.yaml: experts.train.rnak: unknown key; did you mean 'rank'?"),
        (lambda d: d["methods"].update(x={"method": "tise"}), "c.yaml: methods.x: unknown merge method 'tise'; did you mean 'ties'?"),
        (lambda d: d["methods"]["ties"].update(densty=1), "c.yaml: methods.ties: ties: unknown parameter 'densty'; did you mean 'density'?"),
        (lambda d: d["methods"]["ties"].update(density=1.5), "c.yaml: methods.ties: density: 1.5 is outside (0, 1]"),
        (lambda d: d["methods"]["ties"].update(density=0), "c.yaml: methods.ties: density: 0 is outside (0, 1]"),
        (lambda d: d["methods"].update(x={"method": "della", "density": 0.1}), "c.yaml: methods.x: della: epsilon: 0.15 must be less than density and than 1 - density, and density is 0.1"),
        (lambda d: d["methods"].update(x={"method": "della", "by": "validation", "choose": {"density": [0.5, 0.1], "epsilon": [0.05, 0.1]}}), "methods.x: della: epsilon: 0.1 must be less than density"),
        (lambda d: d["methods"].update(x={"method": "ties", "by": "validation", "choose": {"density": []}}), "methods.x: choose.density: has no candidates"),
        (lambda d: d["bases"]["b"].update(revision="main"), "c.yaml: bases.b.revision: 'main' is not a commit hash; a branch can move"),
        (lambda d: d["suites"]["test"].update(math="gsm8"), "c.yaml: suites.test.math: 'gsm8' is unknown; did you mean 'gsm8k'?"),
        (lambda d: d["experts"]["durations"].update(multiples_of_optimum=[0.3]), "0.3 is no multiple of 0.25"),
        (lambda d: d["experts"]["durations"].update(multiples_of_optimum=[1, 0.5]), "is not a rising list"),
        (lambda d: d["experts"]["durations"].update(steps=[10]), "give one of multiples_of_optimum, steps and early_stopping"),
        (lambda d: d["experts"].update(durations={"steps": [15]}), "durations.steps [15] are not multiples of train.save_every 10"),
        (lambda d: d["experts"]["train"].update(max_steps=100), "max_steps 100 is less than 200, the least that 5.0 x T* takes"),
        (lambda d: d["methods"].update(g={"method": "greedy_soup"}), "say what chooses: by: validation"),
        (lambda d: d["methods"].update(g={"method": "greedy_soup", "by": "test"}), "Input should be 'validation'"),
        (lambda d: d["methods"].update(g={"method": "greedy_soup", "by": "validation"}), "suites.validation is empty"),
        (lambda d: d["bases"]["b"].update(model="gpt2"), "c.yaml: bases.b.model: 'gpt2' is not a hub id; give it as the hub shows it: owner/name"),
        (lambda d: d["domains"]["math"].update(dataset="o/d e"), "c.yaml: domains.math.dataset: 'o/d e' is not a hub id"),
        (lambda d: d.update(hub={"endpoint": "hub.org"}), "c.yaml: hub.endpoint: 'hub.org' is no address; give one that begins with https:// or http://"),
        (lambda d: d["bases"].update({"A B": d["bases"]["b"]}), "'A B' is not an id"),
        (lambda d: d.pop("study"), "c.yaml: study: Field required"),
        # Twice
        (lambda d: d.update(seeds=[2, 1, 2]), "c.yaml: seeds: 2 is listed twice; list it once"),
        (lambda d: d.update(analyses=["interference"] * 2), "c.yaml: analyses: 'interference' is listed twice"),
        (lambda d: d.update(mode_connectivity={"spaces": ["delta", "delta"]}), "c.yaml: mode_connectivity.spaces: 'delta' is listed twice"),
        (lambda d: d["pools"]["same"].update(at=["1x", "1x"]), "c.yaml: pools.same.at: '1x' is listed twice"),
        (lambda d: d["pools"].update(drawn={"random_subsets": {"sizes": [2, 2], "count": 1}, "at": "1x"}), "c.yaml: pools.drawn.random_subsets.sizes: 2 is listed twice"),
        (lambda d: d["methods"]["ties"].update(pools=["same", "same"]), "c.yaml: methods.ties.pools: 'same' is listed twice"),
        (lambda d: d["methods"].update(x={"method": "ties", "by": "validation", "choose": {"density": [1, 0.5, 1.0]}}), "c.yaml: methods.x: choose.density: 1.0 is listed twice"),
        (lambda d: d["benchmarks"]["gsm8k"].update(task="x_{config}", config=["de", "de"]), "c.yaml: benchmarks.gsm8k.config: 'de' is listed twice"),
        # Empty
        (lambda d: d["pools"]["same"].update(experts=[]), "c.yaml: pools.same.experts: lists nothing; give at least one"),
        (lambda d: d["pools"]["same"].update(at=[]), "c.yaml: pools.same.at: lists nothing"),
        (lambda d: d["pools"].update(drawn={"random_subsets": {"sizes": [], "count": 1}, "at": "1x"}), "c.yaml: pools.drawn.random_subsets.sizes: lists nothing"),
        (lambda d: d["methods"]["ties"].update(pools=[]), "c.yaml: methods.ties.pools: lists nothing"),
        (lambda d: d["methods"]["ties"].update(sweep={}), "c.yaml: methods.ties: sweep: names no hyper-parameter; name one with its values, or leave sweep out"),
        (lambda d: d["methods"]["ties"].update(choose={}, by="validation"), "c.yaml: methods.ties: choose: names no hyper-parameter"),
        (lambda d: d["methods"]["ties"].update(by="validation"), "c.yaml: methods.ties: by: validation has nothing to choose from; give choose, or leave by out"),
        (lambda d: d["benchmarks"]["gsm8k"].update(task="x_{config}", config=[]), "c.yaml: benchmarks.gsm8k.config: lists nothing"),
        (lambda d: d.update(pools={}), "c.yaml: pools: there are none, so methods have nothing to merge; name one, or no method"),
        (lambda d: d["suites"].update(test={}), "c.yaml: suites.test names no benchmark, so nothing would be said of the merges; name one"),
        (lambda d: d["suites"].update(more={}), "c.yaml: suites: more: names no benchmark; name one, or leave more out"),
        (lambda d: d.update(experts={}), "c.yaml: experts: there are none; give train and durations, or recipes, or imported"),
        # Without a meaning, or without bounds
        (lambda d: d.update(statistics={"fisher": {"draws": 1.5}}), "c.yaml: statistics: fisher.draws: 1.5 is not a whole number"),
        (lambda d: d["pools"]["same"].update(experts=[{"expert": "math", "at": "1x"}]), "c.yaml: pools.same: at does not go with explicit members; give each trained member its duration"),
        (lambda d: d["experts"]["durations"].update(multiples_of_optimum=[float("inf")]), "c.yaml: experts.durations.multiples_of_optimum.0: inf is not a finite number"),
        (lambda d: d["experts"]["durations"].update(multiples_of_optimum=[float("nan")]), "multiples_of_optimum.0: nan is not a finite number"),
        (lambda d: d["experts"]["train"].update(learning_rate=float("inf")), "c.yaml: experts.train.learning_rate: inf is not a finite number"),
        (lambda d: d["experts"]["train"].update(rank=10**12), "c.yaml: experts.train.rank: Input should be less than or equal to 65536"),
        (lambda d: d["experts"]["train"].update(rank=True), "c.yaml: experts.train.rank: true is not a number"),
        (lambda d: d.update(seeds=[True]), "c.yaml: seeds.0: true is not a number"),
        (lambda d: d.update(seeds=[10**30]), "c.yaml: seeds.0: Input should be less than or equal to 4294967295"),
        (lambda d: d["plan"].update(teraflops=float("inf")), "c.yaml: plan.teraflops: inf is not a finite number"),
        (lambda d: d.update(study="a" * 300), "c.yaml: study: 'aaaaaaaaaaaaaaaaaaaa...' has 300 characters; take at most 64"),
        (lambda d: d["bases"]["b"].update(model="o/" + "a" * 300), "c.yaml: bases.b.model: 'o/aaaaaaaaaaaaaaaaaa...' has 302 characters; take at most 250"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(changed(change), "c.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(methods={}),
        lambda d: d.update(methods={}, pools={}),
        lambda d: d.update(methods={}, pools={}, suites={"validation": {}, "test": {}}),
        lambda d: d["suites"].update(test={}, forgetting={"math": "gsm8k"}),
        lambda d: d.update(analyses=["bias_variance"], suites={"validation": {}, "test": {}}),
    ],
)
def test_what_a_study_may_do_without(change: Callable[[dict[str, Any]], Any]) -> None:
    assert subjects(parse(changed(change), "c.yaml"))


def unbounded_numbers(model: type[BaseModel]) -> Iterator[str]:
    """The fields of a section, and of those in it, that take a number without an upper bound."""
    told = model.model_json_schema()
    for name, section in {**told["$defs"], model.__name__: told}.items():
        for field, spec in section.get("properties", {}).items():
            for kind in (spec, spec.get("items", {}), *spec.get("anyOf", ())):
                if kind.get("type") in ("integer", "number") and not {"maximum", "exclusiveMaximum"} & kind.keys():
                    yield f"{name}.{field}"


def test_every_number_is_bounded() -> None:
    # Points from 0 to 1, as a validator of the whole list says.
    assert set(unbounded_numbers(Study)) == {"ModeConnectivity.alphas"}


def test_a_folder_may_end_in_a_slash() -> None:
    assert parse(study() | {"hub": {"folder": "resources/demo/hub/"}}, "c.yaml").hub.folder == "resources/demo/hub"


def with_whole_models(**method: Any) -> Study:
    """A study of two recipes, of which one trains whole models, with a pool of each and one method."""
    data = study()
    lora = {name: data["experts"].pop(name) for name in ("train", "durations")}
    whole = lora | {"train": lora["train"] | {"mode": "full"}}
    data["experts"]["recipes"] = {"lora": lora, "whole": whole}
    data["pools"] = {name: {"experts": "all", "at": "1x", "recipe": name} for name in ("lora", "whole")}
    return parse(data | {"methods": {"m": method}}, "c.yaml")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"method": "ties", "space": "adapter"}, "methods.m: experts of mode full, as in pools.whole, have no LoRA factors; use space: delta, or name its pools"),
        ({"method": "fisher"}, "methods.m: its data are measured on LoRA experts alone, not on mode full, as in pools.whole; name its pools"),
    ],
)  # fmt: skip
def test_what_whole_models_do_not_have_is_asked_of_other_pools_alone(method: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        with_whole_models(**method)
    assert str(caught.value).endswith(message)
    restricted = with_whole_models(**method, pools=["lora"])
    merged = {pool.id: [merge.id for merge in merges_of(restricted, pool)] for pool in pools(restricted)}
    assert merged == {"lora_1x": ["m"], "whole_1x": []}


def parsed(**pools: Any) -> Study:
    return parse(study() | {"pools": pools}, "c.yaml")


def test_all_experts_at_each_duration() -> None:
    found = pools(parsed(same={"experts": "all", "at": "each_duration"}))
    assert [pool.id for pool in found] == ["same_0.25x", "same_1x", "same_5x"]
    assert [expert.path for expert in found[1].experts] == [f"{d}/seed-{{seed}}/1x" for d in ("math", "code", "law")]


def test_an_explicit_list_may_mix_durations() -> None:
    members = [{"expert": "math", "at": "0.25x"}, {"expert": "code", "at": "5x"}]
    (pool,) = pools(parsed(mixed={"experts": members}))
    assert (pool.id, pool.duration) == ("mixed", None)
    assert [(e.name, e.duration) for e in pool.experts] == [("math", "0.25x"), ("code", "5x")]


def test_random_subsets_are_different_and_seeded() -> None:
    spec = {"random_subsets": {"sizes": [2], "count": 3, "seed": 7}, "at": "1x"}
    found = pools(parsed(random=spec))
    assert [pool.id for pool in found] == [f"random_n2_0{n}_1x" for n in range(3)]
    assert len({frozenset(e.name for e in pool.experts) for pool in found}) == 3
    assert found == pools(parsed(random=spec))


def test_imported_experts_have_no_duration_and_one_base() -> None:
    data = study()
    data["bases"]["other"] = data["bases"]["b"]
    data["experts"]["imported"] = {"chef": {"model": "o/chef", "revision": HASH, "base": "b"}}
    data["pools"] = {"mix": {"experts": [{"expert": "math", "at": "1x"}, "chef"]}}
    mixed = parse(data, "c.yaml")
    assert [pool.id for pool in pools_on(mixed, "b")] == ["mix"]
    assert pools_on(mixed, "other") == []
    assert pools(mixed)[0].experts[1].path == "imported/chef"


def test_a_study_may_train_nothing() -> None:
    data = study() | {"domains": {}, "pools": {"wild": {"experts": "all"}}}
    imported = {name: {"model": f"o/{name}", "revision": HASH, "base": "b"} for name in ("chef", "poet")}
    data["experts"] = {"imported": imported}
    (pool,) = pools(parse(data, "c.yaml"))
    assert (pool.id, pool.duration, len(pool.experts)) == ("wild", None, 2)


def test_fixed_steps_are_durations() -> None:
    data = study()
    data["experts"]["durations"] = {"steps": [10, 20]}
    assert durations(parse(data, "c.yaml")) == ["step_10", "step_20"]
    assert multiple_of("step_10") is None
    assert multiple_of("0.25x") == 0.25


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"experts": ["mathh"], "at": "1x"}, "pools.p: 'mathh' is neither a domain nor an imported expert; did you mean 'math'?"),
        ({"experts": "all", "at": "2x"}, "pools.p.at: '2x' is not a duration of this study"),
        ({"experts": "all"}, "pools.p: say at which duration"),
        ({"experts": [{"expert": "math"}]}, "pools.p: say at which duration expert 'math' is (at: one of 0.25x, 1x, 5x)"),
        ({"experts": ["math", "code", "math"], "at": "1x"}, "pools.p: math at 1x is listed twice; list it once"),
        ({"experts": [{"expert": "math", "at": "1x"}, {"expert": "math", "at": "1x", "recipe": "default"}]}, "pools.p: math at 1x is listed twice"),
        ({"random_subsets": {"sizes": [3], "count": 2}, "at": "1x"}, "pools.p: 3 experts have 1 subsets of 3, fewer than count 2"),
    ],
)  # fmt: skip
def test_pools_that_cannot_be(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="pools") as caught:
        pools(parsed(p=spec))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("members", "at", "message"),
    [
        (["chef"], "1x", "pools.p.at: its experts are imported and have no duration; leave at out"),
        ([{"expert": "chef", "at": "1x"}, "math"], None, "pools.p: 'chef' is imported; leave at and recipe out"),
        ([{"expert": "math", "at": "1x"}, "chef", "chef"], None, "pools.p: chef is listed twice; list it once"),
    ],
)
def test_imported_experts_take_no_duration(members: list[Any], at: str | None, message: str) -> None:
    data = study() | {"pools": {"p": {"experts": members, "at": at}}}
    data["experts"]["imported"] = {"chef": {"model": "o/chef", "revision": HASH, "base": "b"}}
    with pytest.raises(ValueError, match="pools") as caught:
        pools(parse(data, "c.yaml"))
    assert str(caught.value) == message


def test_two_experts_of_a_pool_have_two_names() -> None:
    data = study()
    data["domains"]["math_1x"] = data["domains"]["math"]
    members = [{"expert": name, "at": at} for name, at in (("math", "1x"), ("math", "5x"), ("math_1x", "1x"))]
    with pytest.raises(ValueError, match=r"pools\.p: two of its experts would be called math_1x; rename a domain"):
        pools(parse(data | {"pools": {"p": {"experts": members}}}, "c.yaml"))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"method": "slerp"}, "methods.m: slerp merges 1 to 2 experts, and pool same_0.25x has 3; name the pools that it merges (methods.m.pools)"),
        ({"method": "weighted_average", "weights": {"math": 1, "code": 1, "low": 1}}, "methods.m.weights: 'low' is no expert of pool same_0.25x; did you mean 'law'?"),
        ({"method": "weighted_average", "weights": {"math": 1, "code": 1}}, "methods.m.weights: has no number for law of pool same_0.25x"),
    ],
)  # fmt: skip
def test_methods_that_cannot_merge_a_pool(method: dict[str, Any], message: str) -> None:
    data = study() | {"methods": {"m": method}}
    with pytest.raises(ValueError, match="methods") as caught:
        pools(parse(data, "c.yaml"))
    assert str(caught.value).startswith(message)


def test_a_method_of_two_experts_merges_the_pools_that_it_names() -> None:
    data = study() | {"methods": {"m": {"method": "slerp", "pools": ["two"]}}}
    data["pools"]["two"] = {"experts": ["math", "code"], "at": "1x"}
    assert len(pools(parse(data, "c.yaml"))) == 4


def test_candidates_are_merged_but_only_the_chosen_is_tested() -> None:
    data = study()
    data["suites"]["validation"] = {"math": "gsm8k"}
    data["methods"] = {"ta": {"method": "task_arithmetic", "choose": {"lambda": [0.5, 1.0]}, "by": "validation"}}
    merged = [s for s in subjects(parse(data, "c.yaml")) if s.kind == "merged" and s.duration == "1x"]
    assert [(s.path.split("/")[-2], s.splits) for s in merged] == [
        ("ta", ("test",)),
        ("ta.candidate_0", ("validation",)),
        ("ta.candidate_1", ("validation",)),
    ]


def test_candidates_count_together_and_not_with_the_defaults_of_others() -> None:
    data = study()
    data["suites"]["validation"] = data["suites"]["test"]
    choose = {"density": [0.1, 0.5], "epsilon": [0.05]}
    data["methods"] = {"d": {"method": "della", "choose": choose, "by": "validation"}}
    assert len(parse(data, "c.yaml").methods["d"].choices) == 2


def test_yaml_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"c\.yaml: not YAML"):
        load(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump([1]))
    with pytest.raises(UserError, match=r"c\.yaml"):
        load(tmp_path / "c.yaml")
