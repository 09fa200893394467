"""The config: what it refuses, in which words, and that its schema is fresh."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mergetime.config.reading import load, parse, schema
from mergetime.config.study import Study
from mergetime.core.errors import UserError
from mergetime.study import grid

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
    }


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    data = study()
    change(data)
    return data


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_in_the_repository_is_valid(path: Path) -> None:
    assert grid.subjects(load(path))


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
        (lambda d: d["experts"]["durations"].update(multiples_of_optimum=[0.3]), "0.3 is no positive multiple of 0.25"),
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
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(changed(change), "c.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


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
    merged = {pool.id: [merge.id for merge in grid.merges_of(restricted, pool)] for pool in grid.pools(restricted)}
    assert merged == {"lora_1x": ["m"], "whole_1x": []}


def parsed(**pools: Any) -> Study:
    return parse(study() | {"pools": pools}, "c.yaml")


def test_all_experts_at_each_duration() -> None:
    found = grid.pools(parsed(same={"experts": "all", "at": "each_duration"}))
    assert [pool.id for pool in found] == ["same_0.25x", "same_1x", "same_5x"]
    assert [expert.path for expert in found[1].experts] == [f"{d}/seed-{{seed}}/1x" for d in ("math", "code", "law")]


def test_an_explicit_list_may_mix_durations() -> None:
    members = [{"expert": "math", "at": "0.25x"}, {"expert": "code", "at": "5x"}]
    (pool,) = grid.pools(parsed(mixed={"experts": members}))
    assert (pool.id, pool.duration) == ("mixed", None)
    assert [(e.name, e.duration) for e in pool.experts] == [("math", "0.25x"), ("code", "5x")]


def test_random_subsets_are_different_and_seeded() -> None:
    spec = {"random_subsets": {"sizes": [2], "count": 3, "seed": 7}, "at": "1x"}
    found = grid.pools(parsed(random=spec))
    assert [pool.id for pool in found] == [f"random_n2_0{n}_1x" for n in range(3)]
    assert len({frozenset(e.name for e in pool.experts) for pool in found}) == 3
    assert found == grid.pools(parsed(random=spec))


def test_imported_experts_have_no_duration_and_one_base() -> None:
    data = study()
    data["bases"]["other"] = data["bases"]["b"]
    data["experts"]["imported"] = {"chef": {"model": "o/chef", "revision": HASH, "base": "b"}}
    data["pools"] = {"mix": {"experts": [{"expert": "math", "at": "1x"}, "chef"]}}
    mixed = parse(data, "c.yaml")
    assert [pool.id for pool in grid.pools_on(mixed, "b")] == ["mix"]
    assert grid.pools_on(mixed, "other") == []
    assert grid.pools(mixed)[0].experts[1].path == "imported/chef"


def test_a_study_may_train_nothing() -> None:
    data = study() | {"domains": {}, "pools": {"wild": {"experts": "all"}}}
    imported = {name: {"model": f"o/{name}", "revision": HASH, "base": "b"} for name in ("chef", "poet")}
    data["experts"] = {"imported": imported}
    (pool,) = grid.pools(parse(data, "c.yaml"))
    assert (pool.id, pool.duration, len(pool.experts)) == ("wild", None, 2)


def test_fixed_steps_are_durations() -> None:
    data = study()
    data["experts"]["durations"] = {"steps": [10, 20]}
    assert grid.durations(parse(data, "c.yaml")) == ["step_10", "step_20"]
    assert grid.multiple_of("step_10") is None
    assert grid.multiple_of("0.25x") == 0.25


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"experts": ["mathh"], "at": "1x"}, "pools.p: 'mathh' is neither a domain nor an imported expert; did you mean 'math'?"),
        ({"experts": "all", "at": "2x"}, "pools.p.at: '2x' is not a duration of this study"),
        ({"experts": "all"}, "pools.p: say at which duration"),
        ({"experts": [{"expert": "math"}]}, "pools.p: expert 'math' has no duration 'None'"),
        ({"random_subsets": {"sizes": [3], "count": 2}, "at": "1x"}, "pools.p: 3 experts have 1 subsets of 3, fewer than count 2"),
    ],
)  # fmt: skip
def test_pools_that_cannot_be(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="pools") as caught:
        grid.pools(parsed(p=spec))
    assert message in str(caught.value)


def test_candidates_are_merged_but_only_the_chosen_is_tested() -> None:
    data = study()
    data["suites"]["validation"] = {"math": "gsm8k"}
    data["methods"] = {"ta": {"method": "task_arithmetic", "choose": {"lambda": [0.5, 1.0]}, "by": "validation"}}
    subjects = [s for s in grid.subjects(parse(data, "c.yaml")) if s.kind == "merged" and s.duration == "1x"]
    assert [(s.path.split("/")[-2], s.splits) for s in subjects] == [
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
