"""Every statistic on studies drawn again and again: it decides rightly on large effects, and seldom on none."""

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import binom

from mergetime.analysis.bias_variance import slope_weights, slopes, standard_error
from mergetime.claims import judge, margins, statistics
from mergetime.claims.claim import DecisionRule
from mergetime.claims.evidence import Evidence
from mergetime.claims.pairs import over_pairs
from mergetime.claims.results import Estimate, NotTestableError, Result
from mergetime.claims.statistics import STATISTICS, Context, over_domains
from mergetime.uncertainty.comparisons import best_set, margin_of_best
from mergetime.uncertainty.estimates import Estimates
from tests.unit import simulated
from tests.unit.simulated import above, apart, flat, peaking

NONE, LARGE = 140, 40
"""Simulated studies without an effect, and with large ones."""
DRAWS = 1_000
"""Of simulations of coverage, which they then know to 0.7 points."""
ACCURACY = ["math", "code"]
ALIKE = {"ties": 0.9}
"""TIES errs on the same items at all durations, averages on others at each: as noisy, without being as variable."""


@dataclass(frozen=True)
class Case:
    """A claim by a statistic: supported by the study ``large``, neither true nor false in one without effects."""

    rule: dict[str, Any]
    large: str
    parameters: dict[str, Any] = field(default_factory=dict)


QUANTILE_DRAWS = 1_000
"""Behind comparisons with the best, which know their quantiles to 3 % then; 20,000 would take most of the time."""


@pytest.fixture(autouse=True, scope="module")
def _few_quantile_draws() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((statistics, "best_set"), (margins, "margin_of_best")):
            patch.setattr(module, name, functools.partial(getattr(module, name), draws=QUANTILE_DRAWS))
        yield


METHOD = {"method": "ties"}
COMPARED = {"first": "ties", "second": "simple_average"}
CASES = {
    "peak": Case({"at_least": 1.5}, "apart", METHOD),
    "peak_gap": Case({"above": 0}, "apart", {"later": "ties", "earlier": "simple_average"}),
    "peak_rank_by_size": Case({"above": 0}, "sizes", METHOD),
    "loss_to_longest": Case({"above": 0}, "apart", {"method": "simple_average"}),
    "gain_over_t_star": Case({"above": 0}, "apart", METHOD),
    "slope": Case({"above": 0}, "apart", METHOD),
    "slope_gap": Case({"above": 0}, "apart", {"method": "simple_average"}),
    "difference": Case({"above": 0}, "above", COMPARED),
    "best_margin": Case({"above": 0}, "above", COMPARED),
    "best_of": Case({"above": 0}, "above", {"methods": ["ties"]}),
    "spread_gap": Case({"above": 0}, "above", {"wide": "simple_average", "narrow": "ties"}),
    "halfway_margin": Case({"above": 0}, "apart", METHOD),
    "over_base": Case({"above": 0}, "apart", METHOD),
    "over_best_expert": Case({"above": 0}, "apart", METHOD),
    "experts_over_base": Case({"above": 0}, "apart"),
    "barrier_level": Case({"below": 0.35}, "analyses"),
    "barrier_slope": Case({"above": 0}, "analyses"),
    "interference_slope": Case({"above": 0}, "analyses", {"metric": "sign_conflict"}),
    "term_slope": Case({"above": 0}, "analyses", {"term": "variance"}),
}


def analyses(seed: int, level: float, barrier: float, conflict: float, variance: float) -> Evidence:
    """What analyses measured: five experts each, 30 and 60 examples; arguments are the true effects."""
    generator = np.random.default_rng(seed)
    found = {
        "barriers": simulated.barriers(simulated.pairs(generator, level, barrier, 0.02, 0.01)),
        "interference": simulated.interference(simulated.pairs(generator, 0.3, conflict, 0.02, 0.01)),
        "bias_variance": simulated.bias_variance(
            simulated.diversity(generator, variance, {"math": 30, "code": 60}, [0.5, 1.0, 2.0, 4.0])
        ),
    }
    return Evidence({}, found)


def without_effects(seed: int) -> Evidence:
    """Three bases on which nothing differs but in noise; barriers are exactly 0.35."""
    larger = {
        f"b{place}": simulated.scores(3 * seed + place, flat, methods=("ties",), domains=["math"]) for place in (1, 2)
    }
    small = simulated.scores(3 * seed, flat, alike=ALIKE, domains=ACCURACY)
    return Evidence({"small": small, **larger}, analyses(seed, 0.35, 0.0, 0.0, 0.0).analyses)


def sizes(seed: int) -> Evidence:
    """Three bases, the larger the later TIES peaks."""
    peaks = {
        f"b{at:g}": simulated.scores(seed, peaking(at), 300, ("ties",), domains=["math"]) for at in (0.5, 1.5, 5.0)
    }
    return Evidence({"small": peaks.pop("b0.5"), **peaks}, {})


STUDIES: dict[str, Callable[[int], Evidence]] = {
    "apart": lambda seed: Evidence({"small": simulated.scores(seed, apart, 300, domains=ACCURACY)}, {}),
    "above": lambda seed: Evidence({"small": simulated.scores(seed, above, 300, alike=ALIKE, domains=ACCURACY)}, {}),
    "sizes": sizes,
    "analyses": lambda seed: analyses(seed, 0.2, 0.1, 0.1, 0.4),
}


def verdict(name: str, study: Evidence) -> str:
    """What is said of the case of a statistic."""
    case = CASES[name]
    try:
        result = STATISTICS[name].function(Context(study, "small", "delta"), **case.parameters)
    except NotTestableError:
        return "not_testable"
    return judge.decided(DecisionRule.model_validate(case.rule), result)


@functools.cache
def verdicts(effects: bool) -> dict[str, Counter[str]]:
    """How often each verdict is passed, by statistic: all are computed on the same studies."""
    found: dict[str, Counter[str]] = {name: Counter() for name in CASES}
    for name, study in large_studies() if effects else studies_without_effects():
        found[name][verdict(name, study)] += 1
    return found


def studies_without_effects() -> Iterator[tuple[str, Evidence]]:
    for seed in range(NONE):
        study = without_effects(seed)
        yield from ((name, study) for name in CASES)


def large_studies() -> Iterator[tuple[str, Evidence]]:
    for seed in range(LARGE):
        studies = {name: make(10_000 + seed) for name, make in STUDIES.items()}
        yield from ((name, studies[case.large]) for name, case in CASES.items())


@pytest.mark.parametrize("statistic", STATISTICS)
def test_without_an_effect_it_is_undecided(statistic: str) -> None:
    assert statistic in CASES, "a new statistic needs a case here, with a study of a large effect"
    found = verdicts(effects=False)[statistic]
    # As many as an error rate of 5 % decides in all but one of a thousand such tests; all together keep to 5 %.
    assert NONE - found["undecided"] <= binom.ppf(0.999, NONE, 0.05), found


def test_without_an_effect_at_most_one_claim_in_twenty_is_decided() -> None:
    found = verdicts(effects=False)
    assert sum(one["undecided"] for one in found.values()) / NONE / len(found) >= 0.95


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_large_effect_is_decided_rightly(statistic: str) -> None:
    found = verdicts(effects=True)[statistic]
    assert found["supported"] / LARGE >= 0.95, found


# What compares the best of several, at the edge of its rule

MULTIPLES = np.array(simulated.MULTIPLES)
LATE = {
    "flat": np.full(8, 0.40),
    "spike": np.where(MULTIPLES == 3, 0.52, 0.40),
    "hump": 0.52 - 0.10 * np.abs(np.log2(MULTIPLES / 3)),
    "tied second": np.where(np.isin(MULTIPLES, [2, 3]), 0.52, 0.40),
    "sparse": np.where(MULTIPLES == 3, 0.06, 0.02),
}
"""True scores by duration. At the edge of a rule the effect is exactly the threshold."""
AT_T_STAR = {
    "flat": np.full(8, 0.40),
    "spike": np.where(MULTIPLES == 1, 0.48, 0.40),
    "hump": 0.48 - 0.04 * np.abs(np.log2(MULTIPLES)),
    "tied second": np.where(np.isin(MULTIPLES, [0.5, 1]), 0.48, 0.40),
    "sparse": np.where(MULTIPLES == 1, 0.05, 0.02),
}
EDGE, ITEMS = 200, 200
WRONG = int(binom.ppf(0.999, EDGE, 0.05))
"""As many of EDGE studies as an error rate of 5 % makes wrong in all but one of a thousand such tests."""


def answers(generator: np.random.Generator, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean scores and their covariance [subjects, subjects], of models that share what is hard about the items."""
    hard, fresh = generator.standard_normal((ITEMS, 1)), generator.standard_normal((ITEMS, len(truth)))
    right = (np.sqrt(0.3) * hard + np.sqrt(0.7) * fresh < ndtri(truth)).astype(float)
    return right.mean(axis=0), np.cov(right.T) / ITEMS


@pytest.mark.parametrize("shape", LATE)
@pytest.mark.parametrize("against", ["t_star", "another", "a multiple"])
def test_a_margin_at_the_edge_of_its_rule_is_seldom_decided(shape: str, against: str) -> None:
    level = LATE[shape]
    factor = 2.5 if against == "a multiple" else 1.0
    second = [3] if against == "t_star" else list(range(8, 16))
    combine = np.vstack([np.eye(16)[:8], factor * np.eye(16)[second]])
    truth = level.max() - (level if len(second) > 1 else level[second]).max()
    generator, too_low, too_high = np.random.default_rng(5), 0, 0
    for _ in range(EDGE):
        means, covariance = answers(generator, np.concatenate([level, level / factor]))
        values, spread = combine @ means, combine @ covariance @ combine.T
        margin = margin_of_best(values[:8], values[8:], spread, ITEMS - 1, draws=500)
        assert margin is not None and margin.low <= margin.value <= margin.high
        too_low += margin.high < truth - 1e-9
        too_high += margin.low > truth + 1e-9
    assert too_low <= binom.ppf(0.999, EDGE, 0.025), "the claim is true, and contradicted"
    assert too_high <= binom.ppf(0.999, EDGE, 0.025), "the claim is false, and supported"


@pytest.mark.parametrize("shape", AT_T_STAR)
def test_a_set_of_best_durations_seldom_lacks_the_best(shape: str) -> None:
    generator, wrong = np.random.default_rng(6), 0
    for _ in range(EDGE):
        means, covariance = answers(generator, AT_T_STAR[shape])
        names = tuple(str(multiple) for multiple in MULTIPLES)
        kept = best_set(Estimates(names, means, covariance, ITEMS - 1, means[:, None]), draws=500)
        wrong += "1.0" not in kept
    assert wrong <= WRONG


# The intervals behind the verdicts


def covers(found: Result, truth: float) -> bool:
    interval = judge.interval(found)
    return interval.low <= truth <= interval.high


@pytest.mark.parametrize(("experts", "own"), [(3, 0.0), (5, 0.0), (5, 0.01), (8, 0.01)])
def test_intervals_over_pairs_cover_the_truth(experts: int, own: float) -> None:
    generator = np.random.default_rng(1)
    members = np.array(list(itertools.combinations(range(experts), 2)))
    found = [over_pairs(members, simulated.pair_values(generator, members, 0.3, 0.02, own)) for _ in range(DRAWS)]
    assert np.mean([covers(one, 0.3) for one in found]) == pytest.approx(0.95, abs=0.02)


def test_intervals_over_pairs_err_to_the_safe_side_where_experts_bring_nothing() -> None:
    generator = np.random.default_rng(1)
    members = np.array(list(itertools.combinations(range(5), 2)))
    found = [over_pairs(members, simulated.pair_values(generator, members, 0.3, 0.0, 0.02)) for _ in range(DRAWS)]
    assert np.mean([covers(one, 0.3) for one in found]) >= 0.95


@pytest.mark.parametrize("examples", [{"math": 100}, {"math": 20, "code": 80, "safety": 50}])
def test_intervals_over_examples_cover_the_truth(examples: dict[str, int]) -> None:
    generator = np.random.default_rng(2)
    covered, unpaired = 0, 0
    for _ in range(DRAWS):
        pools = simulated.diversity(generator, 0.05, examples, [0.5, 2.0, 4.0])
        own = list(slopes(pools)[simulated.VARIANCE].values())
        means, errors = np.array([one.mean() for one in own]), np.array([standard_error(one) for one in own])
        covered += covers(over_domains(means, errors, np.array(list(examples.values()))), 0.02 * 0.05)
        each = [
            [standard_error(one) for one in pool.contributions[simulated.VARIANCE].values()] for pool in pools.values()
        ]
        weights = slope_weights(np.array([0.5, 2.0, 4.0]))
        apart = float(np.sqrt((np.square(each) * weights[:, None] ** 2).sum())) / len(own)
        unpaired += covers(Estimate(float(means.mean()), apart, np.inf), 0.02 * 0.05)
    assert covered / DRAWS == pytest.approx(0.95, abs=0.02)
    assert abs(unpaired / DRAWS - 0.95) > 0.02, "pairing must matter"


@pytest.mark.parametrize("alike", [{}, {"ties": 0.9}, {"simple_average": 0.9}])
def test_noise_is_no_spread(alike: dict[str, float]) -> None:
    def steep(method: str, multiple: float) -> float:
        return 0.45 + {"ties": 0.08, "simple_average": 0.04}.get(method, 0.0) * np.log2(multiple or 1)

    draws = 200
    truth = 100 * 0.04 * np.log2(simulated.MULTIPLES).std(ddof=1)
    covered = 0
    for seed in range(draws):
        scores = simulated.scores(seed, steep, alike=alike, domains=["math"])
        context = Context(Evidence({"small": scores}, {}), "small", "delta")
        covered += covers(STATISTICS["spread_gap"].function(context, "ties", "simple_average"), truth)
    assert 0.92 <= covered / draws <= 0.99
