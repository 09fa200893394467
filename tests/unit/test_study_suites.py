"""Groups of a suite, sweeps beside choices, and methods on some pools alone."""

import random
from typing import Any

import pytest

from mergetime.config.reading import parse
from mergetime.config.study import Study
from mergetime.core.errors import UserError
from mergetime.study.methods import merges, merges_of
from mergetime.study.pools import pools
from mergetime.study.subjects import subjects
from mergetime.study.suites import benchmarks_of, groups, losses_of, measures_of, reporting
from tests.unit.test_config import HASH, study

PINNED = {"dataset": "o/d", "revision": HASH, "metric": "acc,none"}
BENCHMARKS = {name: PINNED | {"task": name} for name in ("gsm8k", "math500", "mmlu", "coqa")}


def made(suites: dict[str, Any], **changes: Any) -> Study:
    return parse(study() | {"benchmarks": BENCHMARKS, "suites": suites} | changes, "c.yaml")


def test_a_group_of_any_name_reports_and_a_domain_may_have_several_benchmarks() -> None:
    found = made({
        "forgetting": {"general": ["mmlu", "coqa"]}, "test": {"math": ["gsm8k", "math500"]},
        "validation": {"math": "mmlu", "code": "validation_loss"},
    })  # fmt: skip
    assert groups(found) == ["validation", "test", "forgetting"]
    assert reporting(found) == ["test", "forgetting"]
    assert benchmarks_of(found, "test") == [("math", "gsm8k"), ("math", "math500")]
    assert benchmarks_of(found, "validation") == [("math", "mmlu")]
    assert measures_of(found, "validation") == [("math", "mmlu"), ("code", "validation_loss")]
    assert losses_of(found, "validation") == ["code"]
    base, expert, *_ = subjects(found)
    assert (base.splits, expert.splits) == (("test", "forgetting"), ("validation", "test", "forgetting"))
    assert parse(found.model_dump(), "c.yaml") == found


@pytest.mark.parametrize("seed", range(20))
def test_what_chooses_sees_validation_alone(seed: int) -> None:
    draw = random.Random(seed)
    names = draw.sample(["test", "forgetting", "held_out", "long", "safety-2"], draw.randint(1, 5))
    suites: dict[str, dict[str, Any]] = {
        name: {"math": draw.sample(sorted(BENCHMARKS), draw.randint(1, 4))} for name in names
    }
    suites = {"test": {}} | suites | {"validation": {"math": "gsm8k"}}
    methods = {
        "ta": {"method": "task_arithmetic", "choose": {"lambda": [0.5, 1.0]}, "by": "validation"},
        "ties": {"method": "ties", "sweep": {"density": [0.1, 0.9]}},
        "soup": {"method": "greedy_soup", "by": "validation"},
    }
    for subject in subjects(made(suites, methods=methods)):
        if subject.candidate is not None:
            assert subject.splits == ("validation",)
        else:
            assert set(subject.splits) - {"validation"} == set(names)
            assert ("validation" in subject.splits) == (subject.kind == "expert")


@pytest.mark.parametrize(
    ("suites", "message"),
    [
        ({"validation": {}, "test": {"math": "gsm8"}}, "suites.test.math: 'gsm8' is unknown; did you mean 'gsm8k'?"),
        ({"validation": {}, "test": {}, "held_out": {"math": ["mmlu", "nlvr"]}}, "suites.held_out.math: 'nlvr'"),
        ({"validation": {}, "test": {}, "held_out": {"math": "validation_loss"}}, "'validation_loss' is unknown"),
        ({"validation": {}, "test": {"math": ["mmlu", "mmlu"]}}, "suites: test.math: ['mmlu', 'mmlu'] lists"),
        ({"validation": {}, "test": {"math": []}}, "lists nothing"),
        ({"validation": {}, "test": {}, "test.judged": {"math": "mmlu"}}, "'test.judged' names no group"),
    ],
)
def test_suites_that_cannot_be(suites: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        made(suites)
    assert message in str(caught.value)


SUITES = {"validation": {}, "test": {"math": "gsm8k"}}


def test_every_point_of_a_sweep_is_a_merge_that_is_reported() -> None:
    swept = {"method": "ties", "density": 0.2, "sweep": {"density": [0.1, 1.0], "lambda": [1.5]}}
    found = made(SUITES, methods={"ties": swept})
    listed = merges(found)
    assert [(merge.id, merge.axis, merge.axis_value, merge.changes) for merge in listed.values()] == [
        ("ties", None, None, {}),
        ("ties.density-0.1", "density", 0.1, {"density": 0.1}),
        ("ties.density-1", "density", 1.0, {"density": 1.0}),
        ("ties.lambda-1.5", "lambda", 1.5, {"lambda": 1.5}),
    ]
    more = made(SUITES, methods={"ties": swept | {"sweep": {"density": [0.05, 0.1, 1.0], "lambda": [1.5]}}})
    assert listed.items() <= merges(more).items(), "values that are added leave ids alone"
    merged = [subject for subject in subjects(found) if subject.kind == "merged" and subject.duration == "1x"]
    assert [(subject.method, subject.axis, subject.splits) for subject in merged] == [
        ("ties", axis, ("test",)) for axis in (None, "density", "density", "lambda")
    ]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"sweep": {"density": [0.1, 0.1]}}, "sweep.density: [0.1, 0.1] has no value, or one twice"),
        ({"sweep": {"density": []}}, "sweep.density: [] has no value"),
        ({"sweep": {"density": [2.0]}}, "density: 2.0 is outside (0, 1]"),
        ({"sweep": {"densty": [0.1]}}, "unknown parameter 'densty'"),
        (
            {"sweep": {"density": [0.1]}, "choose": {"lambda": [1.0]}, "by": "validation"},
            "sweep does not go with choose",
        ),
        ({"pools": ["smae"]}, "methods.ties.pools: 'smae' is unknown; did you mean 'same'?"),
    ],
)
def test_sweeps_and_pools_that_cannot_be(method: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        made(SUITES, methods={"ties": {"method": "ties"} | method})
    assert message in str(caught.value)


def test_a_method_may_merge_some_pools_alone() -> None:
    families = {"same": {"experts": "all", "at": "1x"}, "pair": {"experts": ["math", "code"], "at": "5x"}}
    methods = {"ties": {"method": "ties", "pools": ["pair"]}, "mean": {"method": "simple_average"}}
    found = made(SUITES, pools=families, methods=methods)
    by_pool = {pool.id: [merge.id for merge in merges_of(found, pool)] for pool in pools(found)}
    assert by_pool == {"same_1x": ["mean"], "pair_5x": ["ties", "mean"]}
    merged = [(subject.pool.id, subject.method) for subject in subjects(found) if subject.pool]
    assert merged == [("same_1x", "mean"), ("pair_5x", "ties"), ("pair_5x", "mean")]
