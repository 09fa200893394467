"""The decomposition of errors: its identity, its definitions by brute force, and simulated experts."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mergetime.analysis import bias_variance
from mergetime.analysis.bias_variance import (
    ALL,
    Terms,
    decomposed,
    over_examples,
    over_experts,
    over_seeds,
    slopes,
    table,
)
from mergetime.core import tables
from mergetime.core.errors import UserError
from mergetime.measuring.columns import PROBABILITIES

RNG = np.random.default_rng(0)
SEEDS, EXPERTS, EXAMPLES = 4, 5, 23
Frame = pd.DataFrame


def drawn(*shape: int) -> bias_variance.Array:
    return RNG.beta(0.7, 0.9, shape)


def sides(terms: Terms, count: int) -> tuple[bias_variance.Array, bias_variance.Array]:
    """The two sides of the equation, example by example."""
    total = terms.bias_squared + terms.variance / count + (1 - 1 / count) * terms.covariance
    return terms.expected_error, total


@pytest.mark.parametrize("count", [2, 3, 5, 11])
def test_the_equation_holds_example_by_example(count: int) -> None:
    for terms in (
        over_experts(drawn(count, EXAMPLES)),
        over_examples(drawn(count, EXAMPLES)),
        over_seeds(drawn(SEEDS, count, EXAMPLES)),
        over_seeds(drawn(2, count, 1)),
    ):
        np.testing.assert_allclose(*sides(terms, count), rtol=0, atol=1e-12)


def test_over_experts_is_the_draw_of_distinct_experts() -> None:
    p = drawn(EXPERTS, EXAMPLES)
    terms = over_experts(p)
    for size in range(1, EXPERTS + 1):
        pools = itertools.combinations(range(EXPERTS), size)
        wanted = np.mean([(1 - p[list(pool)].mean(axis=0)) ** 2 for pool in pools], axis=0)
        found = terms.bias_squared + terms.variance / size + (1 - 1 / size) * terms.covariance
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
    pairs = [(p[a] - p.mean(0)) * (p[b] - p.mean(0)) for a, b in itertools.permutations(range(EXPERTS), 2)]
    np.testing.assert_allclose(terms.covariance, np.mean(pairs, axis=0), atol=1e-14)
    np.testing.assert_allclose(terms.expected_error, (1 - p.mean(axis=0)) ** 2)


def test_over_examples_are_moments_over_a_domain() -> None:
    p = drawn(EXPERTS, EXAMPLES)
    moments = np.cov(p, bias=True)
    terms = over_examples(p)
    assert terms.bias_squared.mean() == pytest.approx((1 - p.mean()) ** 2, abs=1e-14)
    assert terms.variance.mean() == pytest.approx(np.trace(moments) / EXPERTS, abs=1e-14)
    apart = moments[~np.eye(EXPERTS, dtype=bool)]
    assert terms.covariance.mean() == pytest.approx(apart.mean(), abs=1e-14)
    assert terms.expected_error.mean() == pytest.approx(((1 - p.mean(axis=0)) ** 2).mean(), abs=1e-14)


def test_over_seeds_are_moments_over_runs() -> None:
    p = drawn(SEEDS, EXPERTS, EXAMPLES)
    terms = over_seeds(p)
    for example in range(EXAMPLES):
        own = p[:, :, example]
        moments = np.cov(own, rowvar=False, bias=True)
        assert terms.bias_squared[example] == pytest.approx((1 - own.mean()) ** 2, abs=1e-14)
        assert terms.variance[example] == pytest.approx(np.trace(moments) / EXPERTS, abs=1e-14)
        assert terms.covariance[example] == pytest.approx(moments[~np.eye(EXPERTS, dtype=bool)].mean(), abs=1e-14)
        assert terms.expected_error[example] == pytest.approx(((1 - own.mean(axis=1)) ** 2).mean(), abs=1e-14)


def test_simulated_training_runs_give_the_moments_they_were_drawn_with() -> None:
    rng, runs, count = np.random.default_rng(1), 400_000, 3
    means = np.array([0.5, 0.6, 0.8])
    covariances = np.array([[0.010, 0.004, -0.002], [0.004, 0.020, 0.001], [-0.002, 0.001, 0.005]])
    p = rng.multivariate_normal(means, covariances, size=runs)
    terms = over_seeds(p[:, :, None])
    assert terms.bias_squared[0] == pytest.approx((1 - means.mean()) ** 2, abs=5e-4)
    assert terms.variance[0] == pytest.approx(np.trace(covariances) / count, abs=1e-4)
    assert terms.covariance[0] == pytest.approx(0.001, abs=1e-4)
    other = rng.multivariate_normal(means, covariances, size=runs).mean(axis=1)
    assert terms.expected_error[0] == pytest.approx(np.mean((1 - other) ** 2), abs=5e-4)


@pytest.mark.parametrize("decompose", [over_experts, over_examples])
def test_equal_experts_have_a_known_decomposition(decompose: Callable[[bias_variance.Array], Terms]) -> None:
    p = np.tile(drawn(1, EXAMPLES), (EXPERTS, 1))
    terms = decompose(p)
    assert terms.covariance.mean() == pytest.approx(terms.variance.mean() if decompose is over_examples else 0.0)
    assert terms.expected_error == pytest.approx((1 - p[0]) ** 2)


def test_one_expert_has_no_covariance() -> None:
    for decompose, shape in ((over_experts, (1, 4)), (over_examples, (1, 4)), (over_seeds, (3, 1, 4))):
        with pytest.raises(ValueError, match="two at least are needed, here are 1"):
            decompose(drawn(*shape))


def measurement(
    domains: dict[str, int], experts: tuple[str, ...] = ("a", "b"), merged: tuple[str, ...] = ("m",)
) -> Frame:
    """Probabilities at random in the columns of a measurement."""
    subjects = [("expert", name) for name in experts] + [("merged", name) for name in merged]
    rows = [
        (kind, name, domain, example, 3, -math.log(p), p)
        for kind, name in subjects
        for domain, count in domains.items()
        for example, p in enumerate(drawn(count))
    ]
    return pd.DataFrame(rows, columns=list(PROBABILITIES))


def test_the_table_holds_every_term_with_its_error() -> None:
    measured = {seed: measurement({"math": 7, "code": 9}, merged=("m", "n")) for seed in (1, 2)}
    found = table(decomposed(measured))
    assert list(found.columns) == ["seed", *bias_variance.COLUMNS]
    assert set(found["term"]) == set(bias_variance.TERMS)
    # Two seeds in two readings and one over seeds; 3 domains each; 4 terms and 2 of each of two methods.
    assert len(found) == (2 * 2 + 1) * 3 * (4 + 2 * 2)
    keys = ["seed", "over", "domain"]
    terms = found[found["method"].isna()].pivot_table("value", keys, "term", dropna=False).dropna(how="all")
    total = terms["bias_squared"] + terms["variance"] / 2 + terms["covariance"] / 2
    assert (total - terms["expected_error"]).abs().max() < 1e-12
    for method in ("m", "n"):
        own = found[found["method"] == method].pivot_table("value", keys, "term", dropna=False).dropna(how="all")
        assert (own["merged_error"] - terms["expected_error"] - own["remainder"]).abs().max() < 1e-12
    means = found[found["domain"] != ALL].groupby(["seed", "over", "method", "term"], dropna=False)["value"].mean()
    whole = found[found["domain"] == ALL].set_index(["seed", "over", "method", "term"])["value"]
    assert (means.sort_index() - whole.sort_index()).abs().max() < 1e-15
    assert found[found["domain"] == ALL]["examples"].unique().tolist() == [16]


def test_standard_errors_are_those_of_means() -> None:
    measured = measurement({"math": 7, "code": 9})
    found: Any = table(decomposed({3: measured})).set_index(["over", "domain", "term"])
    own = measured[(measured["kind"] == "merged") & (measured["domain"] == "math")]["probability"].to_numpy()
    errors = (1 - own) ** 2
    row = found.loc[("experts", "math", "merged_error")]
    assert row["value"] == pytest.approx(errors.mean())
    assert row["stderr"] == pytest.approx(errors.std(ddof=1) / math.sqrt(7))
    values = [found.loc[("experts", domain, "merged_error")]["value"] for domain in ("math", "code")]
    assert found.loc[("experts", ALL, "merged_error")]["stderr"] == pytest.approx(abs(values[0] - values[1]) / 2)
    assert "seeds" not in set(found.index.get_level_values("over"))


def test_linearised_standard_errors_are_those_of_new_examples() -> None:
    def sample() -> Terms:
        return over_examples(rng.beta(0.8, 1.2, (3, 400)) * 0.5 + rng.beta(0.5, 0.5, 400) * 0.5)

    rng = np.random.default_rng(2)
    several = [sample() for _ in range(600)]
    for name in ("bias_squared", "variance", "covariance", "expected_error"):
        contributions = [getattr(terms, name) for terms in several]
        spread = np.std([own.mean() for own in contributions])
        assert bias_variance.standard_error(contributions[0]) == pytest.approx(spread, rel=0.15), name


def test_one_example_and_one_domain_have_no_standard_error() -> None:
    found = table(decomposed({1: measurement({"math": 1})}))
    assert found["stderr"].isna().all()


def test_other_examples_are_refused() -> None:
    one = measurement({"math": 7})
    with pytest.raises(UserError, match="domain math: not all subjects were measured on the same examples"):
        decomposed({1: one.drop(index=0)})
    with pytest.raises(UserError, match="were measured on different examples; measure them again"):
        decomposed({1: one, 2: measurement({"math": 8})})
    with pytest.raises(UserError, match="were measured on different examples; measure them again"):
        decomposed({1: one[(one["kind"] == "expert") | (one["example"] < 3)]})


def test_slopes_are_paired_by_example() -> None:
    multiples = np.array([0.5, 1.0, 2.0, 4.0])
    pools = {
        multiple: decomposed({seed: measurement({"math": 7, "code": 9}) for seed in (1, 2)}) for multiple in multiples
    }
    found: Any = table(pools[1.0], slopes(pools)).set_index(["seed", "over", "domain", "method", "term"])
    term = bias_variance.Term(1, "experts", None, "variance")
    own = np.stack([pool.contributions[term]["math"] for pool in pools.values()])
    each = np.polyfit(np.log2(multiples), own, 1)[0]
    row = found.loc[(1, "experts", "math", None, "variance")]
    assert row["slope"] == pytest.approx(np.polyfit(np.log2(multiples), own.mean(axis=1), 1)[0])
    assert row["slope_stderr"] == pytest.approx(each.std(ddof=1) / math.sqrt(7))
    assert found["slope"].notna().all()
    again = table(pools[4.0], slopes(pools)).set_index(found.index.names)
    pd.testing.assert_frame_equal(found[["slope", "slope_stderr"]], again[["slope", "slope_stderr"]])
    assert table(pools[1.0], slopes({1.0: pools[1.0]}))["slope"].isna().all()
    past: Any = table(pools[0.5], slopes(pools), slopes(pools, shortest=1.0)).set_index(found.index.names)
    row = past.loc[(1, "experts", "math", None, "variance")]
    each = np.polyfit(np.log2(multiples[1:]), own[1:], 1)[0]
    assert row["slope_past_t_star"] == pytest.approx(each.mean())
    assert row["slope_past_t_star_stderr"] == pytest.approx(each.std(ddof=1) / math.sqrt(7))
    pd.testing.assert_frame_equal(past[["slope", "slope_stderr"]], found[["slope", "slope_stderr"]])
    assert found["slope_past_t_star"].isna().all()
    with pytest.raises(UserError, match="durations of a pool were measured on different examples"):
        slopes(pools | {8.0: decomposed({seed: measurement({"math": 7, "code": 8}) for seed in (1, 2)})})


def test_a_method_that_merges_at_one_duration_has_no_slope() -> None:
    pools = {
        1.0: decomposed({1: measurement({"math": 7}, merged=("m", "n"))}),
        2.0: decomposed({1: measurement({"math": 7})}),
    }
    found = table(pools[1.0], slopes(pools))
    assert found["slope"].isna().equals(found["method"] == "n")


def test_columns_are_those_written(tmp_path: Path) -> None:
    frame = table(decomposed({1: measurement({"math": 4})})).drop(columns="seed")
    path = tmp_path / "a.parquet"
    tables.write(frame, bias_variance.COLUMNS, path)
    assert tables.read(path, bias_variance.COLUMNS)["method"].isna().sum() == 2 * 2 * 4
