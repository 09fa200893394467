"""Comparisons where one of many is picked: Holm's correction, the set that holds the best, the margin of the best."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from mergetime.uncertainty.estimates import LEVEL, ZERO, Estimates, Vector
from mergetime.uncertainty.paired import reach

Mask = NDArray[np.bool_]

_DRAWS, _SEED = 20_000, 20_260_101
_SAME = 1e-10
"""Share of the variances of two means below which that of their difference is rounding: they are one mean."""


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the order given: the chance of any false rejection is at most their bound.

    The i-th smallest of m becomes the largest of min(1, (m - j + 1) p_(j)) over j <= i. It holds whatever the tests'
    dependence, so also for paired tests against one reference, and for the smallest that is picked from them.
    """
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return [float(p) for p in adjusted]


def best_set(estimates: Estimates, level: float = LEVEL, draws: int = _DRAWS) -> list[str]:
    """The subjects that cannot be told apart from the best: the set holds the true best with probability ``level``.

    Subject i stays unless some j is better by more than chance explains: (m_j - m_i) / se_ij > c_i, where se_ij is the
    error of the paired difference and c_i the ``level`` quantile of max_j (e_j - e_i) / se_ij for errors e of the
    estimated covariance (multivariate t). This is Hsu's multiple comparisons with the best in the form of Edwards and
    Hsu (1983): every subject is in turn the control of a one-sided Dunnett test. If i is the true best, then all true
    differences are at most 0, and it is dropped with probability at most 1 - level.

    Why not Holm's correction of the tests against the best one seen: that one was picked by the same scores, so the
    tests are no tests against a fixed reference; and Holm takes nothing from the correlation of neighbouring durations,
    which the maximum does, so its sets would be larger.

    The quantiles are simulated from a fixed seed; at 20,000 draws they are known to about 1 %.

    Returns:
        Names in the order of ``estimates``; the highest is always among them.
    """
    values, covariance = estimates.values, estimates.covariance
    variances = np.diag(covariance)
    errors = np.sqrt(np.maximum(variances[:, None] + variances[None, :] - 2 * covariance, 0.0))
    noise = _noise(covariance, estimates.freedom, draws)
    kept = []
    for i, name in enumerate(estimates.names):
        gaps = values - values[i]
        uncertain = errors[i] > ZERO
        if (gaps[~uncertain] > ZERO).any():
            continue
        if uncertain.any():
            # In place: allocating would take longer than computing.
            scaled = noise[uncertain]
            scaled -= noise[i]
            scaled /= errors[i][uncertain, None]
            if (gaps[uncertain] / errors[i][uncertain]).max() > np.quantile(scaled.max(axis=0), level):
                continue
        kept.append(name)
    return kept


@dataclass(frozen=True)
class Margin:
    """By how much the best of some subjects exceeds the best of others, with its interval; in the scores' unit."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Part:
    """What items of one kind, such as a domain's, bring to two sides' means.

    Attributes:
        first: of the first subjects' means [k].
        second: of the second subjects' means [m].
        covariance: of both, one after the other [k + m, k + m].
        items: how many independent items there are.
        most: the most that they can bring to a first and to a second mean; 0 where they are in neither.
    """

    first: Vector
    second: Vector
    covariance: Vector
    items: float
    most: tuple[float, float]


def margin_of_best(
    first: Vector,
    second: Vector,
    covariance: Vector,
    freedom: float,
    same: Mask | None = None,
    parts: Sequence[Part] | None = None,
    level: float = LEVEL,
    draws: int = _DRAWS,
) -> Margin | None:
    """max(first) - max(second) of true means, with an interval that holds it with probability ``level``.

    Its estimate is the difference of the highest means seen, which is biased: noise favours maxima. The interval does
    not rest on it. With g_ij = first_i - second_j, the margin is the largest of the g_ij over i where j is the second's
    best, j*. For each j, the lower bounds g_ij - c_j se_ij hold for all i at once, where c_j is the quantile of
    max_i (e_i - e_j) / se_ij for errors of the given covariance (multivariate t, Dunnett 1955), so that the highest of
    these is below max_i g_ij. Which j is j* is not known, but it is one of them: the lowest over j is a lower bound of
    the margin, without a correction for the number of j (an intersection-union test, Berger 1982). The upper bound
    follows by exchanging the two sides: corrected over j, highest over i. With one second subject, such as T*, it is
    the highest of the plain paired bounds.

    Where few items tell two subjects apart, an end is further away than c se: it has the error that the difference
    would have there (:func:`mergetime.uncertainty.paired.reach`), in each part of the items by itself. The squared
    distances of the parts add up, as their variances do (Zou and Donner 2008, Construction of confidence limits about
    effect measures: a general approach).

    Args:
        first: means of the subjects whose best is compared [k].
        second: means of those that it is compared with [m]; a subject may be in both.
        covariance: of ``first`` and ``second``, one after the other [k + m, k + m].
        freedom: degrees of freedom of the variances.
        same: which pairs are one subject [k, m], whose difference is known to be 0; None: none are.
        parts: what items of several kinds bring; None: all are of one kind, and means are from 0 to 1.
        level: each end errs with probability (1 - level) / 2.
        draws: of the simulated quantiles, from a fixed seed.

    Returns:
        None if no item tells a first subject from a second one.
    """
    k = len(first)
    variances = np.diag(covariance)
    sums = variances[:k, None] + variances[None, k:]
    squares = sums - 2 * covariance[:k, k:]
    errors = np.sqrt(np.where(squares > _SAME * sums, squares, 0.0))
    gaps = first[:, None] - second[None, :]
    if (errors <= ZERO).all() and (np.abs(gaps) <= ZERO).all():
        return None
    noise = _noise(covariance, freedom, draws)
    lower = [_quantile(noise[:k] - noise[k + j], errors[:, j], freedom, level) for j in range(len(second))]
    upper = [_quantile(noise[i] - noise[k:], errors[i], freedom, level) for i in range(k)]
    apart = np.ones_like(gaps) if same is None else ~same
    parts = parts or [Part(first, second, covariance, freedom + 1, (1.0, 1.0))]
    down, up = (np.zeros_like(gaps) for _ in range(2))
    for part in parts:
        below, above = _reaches(part, np.array(lower)[None, :], np.array(upper)[:, None])
        down, up = np.hypot(down, below), np.hypot(up, above)
    low = (gaps - apart * down).max(axis=0).min()
    high = (gaps + apart * up).min(axis=1).max()
    return Margin(float(first.max() - second.max()), float(low), float(high))


def _reaches(part: Part, lower: Vector, upper: Vector) -> tuple[Vector, Vector]:
    """How far the lower and the upper ends of a part's differences are from them [k, m]."""
    k = len(part.first)
    first, second = (np.divide(side, most) for side, most in zip((part.first, part.second), part.most, strict=True))
    variances = np.diag(part.covariance)
    squares = variances[:k, None] + variances[None, k:] - 2 * part.covariance[:k, k:]
    errors = np.sqrt(np.maximum(squares, 0.0))
    errors[errors <= ZERO] = 0.0
    shares, others = first[:, None], second[None, :]
    shared = _shared(shares, others, part.covariance[:k, k:], variances[:k, None] * variances[None, k:])
    most, least = part.most
    below = most * reach(shares, others, shared, errors / most, lower, part.items, least / most)
    above = least * reach(others, shares, shared, errors / least, upper, part.items, most / least)
    return below, above


def _shared(first: Vector, second: Vector, covariances: Vector, products: Vector) -> Vector:
    """The share of items that two subjects are both right on, from their shares and how their means vary together."""
    correlations = np.divide(covariances, np.sqrt(products), out=np.zeros_like(products), where=products > 0)
    both = first * second + correlations * np.sqrt(np.maximum(first * (1 - first) * second * (1 - second), 0.0))
    return np.asarray(np.clip(both, np.maximum(first + second - 1, 0.0), np.minimum(first, second)))


def _quantile(noise: Vector, errors: Vector, freedom: float, level: float) -> float:
    """The quantile (1 + level) / 2 of the largest of several errors [subjects, draws], each over its standard error."""
    uncertain = errors > ZERO
    if uncertain.sum() <= 1:
        return float(stdtrit(freedom, (1 + level) / 2))
    return float(np.quantile((noise[uncertain] / errors[uncertain, None]).max(axis=0), (1 + level) / 2))


def _noise(covariance: Vector, freedom: float, draws: int) -> Vector:
    """Draws (columns) of errors of the given covariance, over a common chi of ``freedom`` degrees."""
    lengths, directions = np.linalg.eigh(covariance)
    normal, scale = _draws(len(lengths), freedom, draws)
    noise: Vector = (directions * np.sqrt(np.maximum(lengths, 0.0))) @ normal / scale
    return noise


@functools.lru_cache(maxsize=16)
def _draws(subjects: int, freedom: float, draws: int) -> tuple[Vector, Vector]:
    generator = np.random.default_rng(_SEED)
    normal = generator.standard_normal((subjects, draws))
    return normal, np.sqrt(generator.chisquare(freedom, draws) / freedom)
