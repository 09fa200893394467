"""The grids of the repository's studies: their pools, merges and subjects, in an order that results depend on."""

import hashlib
import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from mergetime.config.reading import load, parse
from mergetime.config.study import Study
from mergetime.core.errors import UserError
from mergetime.results.collection import planned_columns
from mergetime.study.durations import durations
from mergetime.study.methods import merge_ids
from mergetime.study.pools import pools, pools_on
from mergetime.study.subjects import subjects, trainings
from tests.unit.test_config import HASH, changed, study

ROOT = Path(__file__).parents[2]
COLUMNS = [
    "study", "base", "base_revision", "subject_kind", "subject", "expert", "pool", "method", "space", "duration",
    "multiple", "seed",
]  # fmt: skip


def listing(study: Study) -> list[str]:
    """The whole grid as text: a change of any id, path, split, or of the order, changes it."""
    merged = [
        f"{pool.id} {pool.duration} " + " ".join(f"{name}={expert.path}" for name, expert in pool.members.items())
        for pool in pools(study)
    ]
    bases = [repr([pool.id for pool in pools_on(study, base)]) for base in study.bases]
    evaluated = []
    for subject in subjects(study):
        columns = planned_columns(study, subject)
        evaluated.append(f"{subject.splits} {subject.candidate} " + repr([columns[name] for name in COLUMNS]))
    return [*merged, repr(durations(study)), repr(merge_ids(study)), *bases, *evaluated]


@pytest.mark.parametrize(
    ("name", "numbers", "digest"),
    [
        ("demo", (76, 5), "951068a864b19905"),
        ("smoke", (43, 5), "c2535abdcbff8431"),
        ("paper", (507, 8), "b8068337f1696dda"),
    ],
)
def test_a_study_that_was_run_keeps_its_grid(name: str, numbers: tuple[int, int], digest: str) -> None:
    """The numbers are those of subjects and of pools.

    The digests are those of version 0.1.0: another one renames, adds, drops or reorders what has been computed.
    """
    study = load(ROOT / f"config/{name}.yaml")
    assert (len(subjects(study)), len(pools(study))) == numbers
    assert hashlib.sha256("\n".join(listing(study)).encode()).hexdigest()[:16] == digest


LONG = {"train": {"save_every": 10}, "durations": {"steps": [10, 20]}}
SHORT = {"train": {"save_every": 5, "rank": 4}, "durations": {"steps": [5, 10]}}


def with_recipes(pools: dict[str, Any], **recipes: Any) -> Study:
    data = study() | {"experts": {"recipes": recipes or {"default": LONG, "short": SHORT}}, "pools": pools}
    return parse(data if pools else data | {"methods": {}}, "c")


def test_train_and_durations_are_the_recipe_default() -> None:
    by_key = parse(study() | {"experts": LONG, "pools": {}, "methods": {}}, "c.yaml")
    by_name = with_recipes({}, default=LONG)
    assert subjects(by_key) == subjects(by_name)
    assert by_key.experts.all_recipes == by_name.experts.all_recipes
    assert parse(by_name.model_dump(), "c.yaml") == by_name
    with pytest.raises(UserError, match="give either recipes, or train and durations, which are the recipe default"):
        parse(study() | {"experts": LONG | {"recipes": {"short": SHORT}}}, "c.yaml")


def test_every_recipe_trains_experts_of_its_own_durations() -> None:
    made = with_recipes({})
    paths = [subject.path for subject in subjects(made) if subject.expert == "math"]
    assert paths == [f"experts/b/math/{path}" for path in (
        "seed-1/step_10", "seed-1/step_20", "short/seed-1/step_5", "short/seed-1/step_10",
    )]  # fmt: skip
    assert durations(made) == ["step_10", "step_20", "step_5"]
    assert [training.path for training in trainings(made)][:2] == [
        "experts/b/math/seed-1",
        "experts/b/math/short/seed-1",
    ]


def test_a_pool_takes_one_recipe_or_each() -> None:
    found = pools(with_recipes({
        "plain": {"experts": "all", "at": "step_20"},
        "one": {"experts": "all", "at": "each_duration", "recipe": "short"},
        "both": {"experts": ["math", "code"], "at": "step_10", "recipe": "each"},
        "mixed": {"experts": [{"expert": "math", "at": "step_10"}, {"expert": "math", "at": "step_10", "recipe": "short"}]},
    }))  # fmt: skip
    assert [(pool.id, pool.family, pool.recipe, pool.duration) for pool in found] == [
        ("plain_step_20", "plain", "default", "step_20"),
        ("one_step_5", "one", "short", "step_5"),
        ("one_step_10", "one", "short", "step_10"),
        ("both_step_10", "both", "default", "step_10"),
        ("both_short_step_10", "both", "short", "step_10"),
        ("mixed", "mixed", None, "step_10"),
    ]
    assert list(found[-1].members) == ["math_default_step_10", "math_short_step_10"]
    assert {expert.path for expert in found[4].experts} == {
        f"{d}/short/seed-{{seed}}/step_10" for d in ("math", "code")
    }


@pytest.mark.parametrize(
    ("recipes", "pool", "message"),
    [
        ({"short": SHORT}, {"experts": "all", "at": "step_5"}, "pools.p.recipe: 'default' is not a recipe of this study"),
        ({"short": SHORT}, {"experts": "all", "at": "step_5", "recipe": "shrt"}, "did you mean 'short'"),
        ({"short": SHORT}, {"experts": "all", "at": "step_20", "recipe": "short"}, "'step_20' is not a duration"),
        ({"each": SHORT}, {"experts": "all", "at": "step_5"}, "a recipe cannot have this name"),
        ({"seed-1": SHORT}, {"experts": "all", "at": "step_5"}, "a recipe cannot have this name"),
        ({"short": SHORT}, {"experts": [{"expert": "math", "at": "step_5"}], "recipe": "each"}, "explicit members"),
        ({"long": LONG | {"durations": {"steps": [15]}}}, {"experts": "all"}, "experts.recipes.long: durations.steps"),
    ],
)  # fmt: skip
def test_recipes_that_cannot_be(recipes: dict[str, Any], pool: dict[str, Any], message: str) -> None:
    with pytest.raises((UserError, ValueError)) as caught:
        pools(with_recipes({"p": pool}, **recipes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_random_subsets_are_drawn_without_listing_them() -> None:
    everyone = [f"e{number}" for number in range(48)]
    data = changed(lambda d: d.update(domains={}, suites={"validation": {}, "test": {"general": "gsm8k"}}))
    data["experts"] = {"imported": {name: {"model": "o/m", "revision": HASH, "base": "b"} for name in everyone}}
    data["pools"] = {"drawn": {"random_subsets": {"sizes": [2, 10], "count": 15, "seed": 3}}}
    found = pools(parse(data, "c.yaml"))
    assert [(pool.family, len(pool.experts), pool.draw) for pool in found[14:17]] == [
        ("drawn", 2, 14), ("drawn", 10, 0), ("drawn", 10, 1),
    ]  # fmt: skip
    rng = random.Random(3)
    listed = rng.sample(list(itertools.combinations(everyone, 2)), 15)
    assert [tuple(pool.members) for pool in found[:15]] == listed, "as drawing from the list of all of them"


def test_a_pool_that_no_base_can_merge_is_refused() -> None:
    data = changed(lambda d: d["bases"].update(other=d["bases"]["b"]))
    data["experts"]["imported"] = {
        name: {"model": "o/m", "revision": HASH, "base": base} for name, base in (("chef", "b"), ("poet", "other"))
    }
    data["pools"] = {"two": {"experts": ["chef", "poet"]}}
    with pytest.raises(ValueError, match=r"pools.two: .* several bases \(chef on b, poet on other\)"):
        pools(parse(data, "c.yaml"))
