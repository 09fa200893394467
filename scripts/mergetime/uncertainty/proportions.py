"""Intervals of scores from 0 to 1 that hold near both ends, from what a row of results has: mean, error and items.

A score of 0 or 1 per item makes its mean a proportion. Near 0 and 1 a proportion is not normal about its estimate, and
where no item is right its standard error is 0, which is no certainty. Wilson's interval holds there.
"""

from dataclasses import dataclass

import numpy as np

from mergetime.uncertainty.estimates import ZERO, Vector

NORMAL_95 = 1.959964
"""The 97.5 % quantile of the normal distribution."""
_LEAST_EFFECT = 0.9
"""Below this design effect, scores vary less than 0 and 1 can (strata take a little from it): they are graded."""
_FEWEST = 10
"""With fewer items right, or wrong, than this, the error says little about clusters."""


@dataclass(frozen=True)
class Intervals:
    """The ends of 95 % intervals, in the unit of the values."""

    low: Vector
    high: Vector


def design_effect(values: Vector, stderrs: Vector, items: Vector) -> float:
    """How many times the variance of independent answers, right or wrong, the means of one benchmark have.

    It is sum(stderr^2) / sum(p (1 - p) / (n - 1)) over several subjects: 1 without clusters, more where translations of
    one question stand or fall together (Kish 1965), less for scores between 0 and 1. Where no subject is between 0 and
    1 there is no telling, and it is 1.

    Args:
        values: means from 0 to 1, by subject.
        stderrs: their standard errors.
        items: how many items each is over.
    """
    independent = float(np.sum(_independent(values, items)))
    return float(np.sum(stderrs**2)) / independent if independent else 1.0


def intervals(values: Vector, stderrs: Vector, items: Vector) -> Intervals:
    """The 95 % intervals of subjects' means on one benchmark.

    Proportions have Wilson's (1927) with the effective number of items n / d, where d is a subject's own design effect
    (Korn and Graubard 1998). Where fewer than ten items are right, or wrong, hardly two are of one cluster and the own
    design effect comes out too small: there d is at least that of all subjects together, and at least 1. Means of
    graded scores have value -/+ 1.96 stderr within 0 and 1; but where every item has 0, or every item 1, Wilson's: the
    mean is at most the share of items above 0. Arguments as in :func:`design_effect`.
    """
    pooled = design_effect(values, stderrs, items)
    independent = _independent(values, items)
    with np.errstate(divide="ignore", invalid="ignore"):
        effects = np.where(independent > 0, stderrs**2 / independent, pooled)
    few = items * np.minimum(values, 1 - values) < _FEWEST
    effects = np.where(few, np.maximum(effects, max(pooled, 1.0)), effects)
    shares = wilson(values, items / np.maximum(effects, ZERO))
    if pooled >= _LEAST_EFFECT:
        return shares
    at_end = (stderrs == 0) & ((values == 0) | (values == 1))
    low, high = values - NORMAL_95 * stderrs, values + NORMAL_95 * stderrs
    return Intervals(
        np.where(at_end, shares.low, np.maximum(low, 0.0)), np.where(at_end, shares.high, np.minimum(high, 1.0))
    )


def wilson(values: Vector, items: Vector) -> Intervals:
    """Wilson's score interval of proportions: the p with |value - p| <= z sqrt(p (1 - p) / items), z for 95 %.

    Args:
        values: the proportions, from 0 to 1.
        items: how many independent items each is worth.
    """
    pull = NORMAL_95**2 / items
    centre = (values + pull / 2) / (1 + pull)
    inside = np.clip(values * (1 - values), 0.0, None)
    reach = NORMAL_95 / (1 + pull) * np.sqrt(inside / items + pull / (4 * items))
    # Zero items right leave 0 possible, and all of them 1, whatever rounding makes of the difference.
    return Intervals(np.where(values == 0, 0.0, centre - reach), np.where(values == 1, 1.0, centre + reach))


def _independent(values: Vector, items: Vector) -> Vector:
    """The variances of means of independent answers, as estimated: p (1 - p) / (n - 1)."""
    return values * (1 - values) / np.maximum(items - 1, 1)
