"""Intervals of scores near 0 and 1, and how often they hold the truth."""

import numpy as np
import pytest
from scipy import stats

from mergetime.uncertainty.estimates import Codes, Vector, estimate
from mergetime.uncertainty.proportions import NORMAL_95, design_effect, intervals, wilson
from tests.unit.test_coverage import answers

STUDIES = 400
"""Simulated studies, of three scores each: a coverage of 95 % is known to 0.6 points."""


def error_of(shares: Vector, items: float) -> Vector:
    """The standard errors of means of independent answers."""
    return np.sqrt(shares * (1 - shares) / (items - 1))


def wald(values: Vector, stderrs: Vector) -> tuple[Vector, Vector]:
    """What the tables had before: 1.96 errors to either side, within 0 and 1."""
    return np.maximum(values - NORMAL_95 * stderrs, 0), np.minimum(values + NORMAL_95 * stderrs, 1)


@pytest.mark.parametrize("right", [0, 1, 7, 50, 99, 100])
def test_a_proportion_has_wilsons_interval(right: int) -> None:
    share, items = np.array([right / 100]), np.array([100.0])
    ends = intervals(share, error_of(share, 100), items)
    expected = stats.binomtest(right, 100).proportion_ci(method="wilson")
    assert (ends.low[0], ends.high[0]) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_clusters_leave_as_many_items_as_their_errors_say() -> None:
    shares = np.array([0.3, 0.5])
    ends = intervals(shares, 2 * error_of(shares, 400), np.full(2, 400.0))
    expected = wilson(shares, np.full(2, 100.0))
    assert ends.low == pytest.approx(expected.low)
    assert ends.high == pytest.approx(expected.high)


def test_few_right_answers_have_the_design_effect_of_all_subjects() -> None:
    shares, items = np.array([0.0, 0.01, 0.5]), np.full(3, 400.0)
    stderrs = error_of(shares, 400) * np.array([1, 1, 2])
    pooled = design_effect(shares, stderrs, items)
    assert 3.5 < pooled < 4
    ends = intervals(shares, stderrs, items)
    assert ends.high[:2] == pytest.approx(wilson(shares, items / pooled).high[:2])
    assert ends.high[2] == pytest.approx(wilson(shares, items / 4).high[2])


def test_graded_scores_keep_their_interval() -> None:
    values, stderrs, items = np.array([0.02, 0.4]), np.array([0.015, 0.02]), np.full(2, 100.0)
    # Scores that are halves and thirds vary less than right and wrong ones.
    stderrs = np.minimum(stderrs, 0.9 * error_of(values, 100))
    ends = intervals(values, stderrs, items)
    low, high = wald(values, stderrs)
    assert ends.low.tolist() == low.tolist()
    assert ends.high.tolist() == high.tolist()


def test_graded_scores_that_are_all_0_are_not_certain() -> None:
    ends = intervals(np.array([0.0, 0.4, 1.0]), np.array([0.0, 0.01, 0.0]), np.full(3, 100.0))
    assert ends.high[0] == pytest.approx(0.037, abs=1e-4)
    assert ends.low[2] == pytest.approx(0.963, abs=1e-4)
    assert (ends.low[0], ends.high[2]) == (0, 1)


def test_without_numbers_of_items_nothing_changes() -> None:
    values, stderrs = np.array([0.4, 0.5]), np.array([0.03, 0.0])
    ends = intervals(values, stderrs, np.full(2, np.nan))
    assert (ends.low.tolist(), ends.high.tolist()) == tuple(end.tolist() for end in wald(values, stderrs))


@pytest.mark.parametrize(("share", "before"), [(0.01, 0.64), (0.03, 0.81), (0.99, 0.64), (0.4, 0.95)])
def test_independent_answers_are_covered(share: float, before: float) -> None:
    """By every possible number of right answers, so without a Monte Carlo error."""
    right = np.arange(101)
    chance = stats.binom.pmf(right, 100, share)
    shares, items = right / 100, np.full(101, 100.0)
    stderrs = error_of(shares, 100)
    ends, (low, high) = intervals(shares, stderrs, items), wald(shares, stderrs)
    assert chance[(low <= share) & (share <= high)].sum() == pytest.approx(before, abs=0.01)
    assert chance[(ends.low <= share) & (share <= ends.high)].sum() >= 0.92


@pytest.mark.parametrize("share", [0.02, 0.98])
def test_translations_are_covered(share: float) -> None:
    generator = np.random.default_rng(7)
    sources: Codes = np.repeat(np.arange(60), 4)
    truth = np.array([share, share, share, 0.4, 0.6])
    covered = []
    for _ in range(STUDIES):
        scores = estimate("abcde", answers(generator, truth[:, None], sources), clusters=sources)
        ends = intervals(scores.values, scores.stderr, np.full(5, 240.0))
        low, high = wald(scores.values, scores.stderr)
        covered.append(((low <= truth) & (truth <= high), (ends.low <= truth) & (truth <= ends.high)))
    before, after = np.mean(covered, axis=0)[:, :3].mean(axis=1)
    assert before < 0.9
    assert after >= 0.93


def test_equal_scores_on_translations_seldom_differ() -> None:
    """Ours against printed ones, of which the errors of their items alone are known."""
    generator = np.random.default_rng(8)
    sources: Codes = np.repeat(np.arange(60), 4)
    truth, items = np.array([0.35, 0.45, 0.55]), np.full(3, 240.0)
    differ = []
    for _ in range(STUDIES):
        ours = estimate("abc", answers(generator, truth[:, None], sources), clusters=sources)
        printed = answers(generator, truth[:, None], sources).mean(axis=(1, 2))
        binomial = printed * (1 - printed) / items
        effect = design_effect(ours.values, ours.stderr, items)
        errors = (np.sqrt(ours.stderr**2 + variance) for variance in (binomial, effect * binomial))
        differ.append([np.abs(ours.values - printed) > NORMAL_95 * error for error in errors])
    before, after = np.mean(differ, axis=(0, 2))
    assert before > 0.08
    assert 0.03 < after < 0.075
