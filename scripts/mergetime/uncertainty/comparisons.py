"""Comparisons where one of many is picked: Holm's correction, and the set that holds the best."""

import functools
from collections.abc import Sequence

import numpy as np

from mergetime.uncertainty.estimates import LEVEL, ZERO, Estimates, Vector

_DRAWS, _SEED = 20_000, 20_260_101


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
