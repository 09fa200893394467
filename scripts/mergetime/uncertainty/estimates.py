"""Means of scores over test items, with the errors of the means and of their differences.

Subjects that are compared answer the same items, so their errors are correlated, and a difference is known better than
either score. One covariance matrix of the subjects' means holds all of that: standard errors on its diagonal, paired
differences between its entries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

Vector = NDArray[np.float64]
Codes = NDArray[np.int64]

LEVEL = 0.95
"""Of intervals and of sets of the best."""
ZERO = 1e-12
"""Scores and errors below this are rounding."""
FEWEST_SEEDS = 3
"""With fewer seeds than this, their spread is no estimate of what training adds."""
FEWEST_DISCORDANT = 6
"""Fewer items that differ than this are weak evidence: 5 that all favour one subject have a sign test's p of 0.06."""


@dataclass(frozen=True)
class Difference:
    """One mean minus another over the same items; ``stderr`` in the unit of ``value``, t with ``freedom`` degrees."""

    value: float
    stderr: float
    freedom: float

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """value +- t stderr, with t the (1 + level) / 2 quantile of Student's distribution."""
        reach = float(stdtrit(self.freedom, (1 + level) / 2)) * self.stderr
        return self.value - reach, self.value + reach

    @property
    def p_value(self) -> float:
        """Two-sided p of the paired t-test of no difference: 2 P(T < -|value| / stderr).

        Where no item differs there is no evidence (1); where all differ by the same, no doubt (0).
        """
        if self.stderr <= ZERO:
            return 1.0 if abs(self.value) <= ZERO else 0.0
        return float(2 * stdtr(self.freedom, -abs(self.value) / self.stderr))


@dataclass(frozen=True)
class Estimates:
    """The mean scores of several subjects on the same items.

    Attributes:
        names: the subjects.
        values: their means over items and seeds, in the unit of the scores.
        covariance: of these means, over the drawing of items; seeds are held fixed.
        freedom: degrees of freedom of the variances.
        by_seed: the means of each subject (rows) with each seed (columns).
    """

    names: tuple[str, ...]
    values: Vector
    covariance: Vector
    freedom: float
    by_seed: Vector = field(repr=False)

    @property
    def stderr(self) -> Vector:
        """Standard error of each mean over items; it says nothing of other seeds."""
        error: Vector = np.sqrt(np.diag(self.covariance))
        return error

    @property
    def seed_spread(self) -> Vector:
        """Standard deviation (n - 1) of each subject over seeds, null for one seed: beside the error, never in it."""
        seeds = self.by_seed.shape[1]
        return np.std(self.by_seed, axis=1, ddof=1) if seeds > 1 else np.full(len(self.names), np.nan)

    def interval(self, name: str, level: float = LEVEL) -> tuple[float, float]:
        """The interval of one mean over items."""
        at = self.names.index(name)
        return Difference(float(self.values[at]), float(self.stderr[at]), self.freedom).interval(level)

    def difference(self, first: str, second: str) -> Difference:
        """``first`` minus ``second``; its variance is S_11 + S_22 - 2 S_12, that of the paired t-test."""
        i, j = self.names.index(first), self.names.index(second)
        variance = self.covariance[i, i] + self.covariance[j, j] - 2 * self.covariance[i, j]
        return Difference(float(self.values[i] - self.values[j]), float(np.sqrt(max(variance, 0.0))), self.freedom)


def estimate(
    names: Sequence[str], scores: Vector, strata: Codes | None = None, clusters: Codes | None = None
) -> Estimates:
    """The means of subjects over one benchmark's items.

    The mean is m = sum_h (1 / H) mean_h over H strata, each of which counts the same; without strata it is the plain
    mean. Seeds answer the same items, so an item's score is averaged over them first. With w_i the weight of item i and
    u_i = w_i (x_i - mean_h), the covariance is sum_i u_i u_i' n_h / (n_h - 1): for one stratum s^2 / n. Items of one
    cluster share a source and count as one draw: u is summed within the cluster first, and the factor is G / (G - 1)
    for G clusters (Liang and Zeger 1986; for evaluations, Miller 2024, "Adding error bars to evals", section 2.2).

    Args:
        names: the subjects.
        scores: subjects x seeds x items.
        strata: of each item, a code from 0: the tasks of a benchmark whose tasks count the same. They are no sample
            (languages are chosen, not drawn), so no error comes from which they are.
        clusters: of each item, a code from 0; items translated from one source share it. Clusters may cross strata.

    Raises:
        ValueError: if there are fewer than two items in a stratum, or two clusters.
    """
    items = scores.shape[2]
    strata = np.zeros(items, dtype=np.int64) if strata is None else strata
    sizes = np.bincount(strata).astype(float)
    if sizes.min(initial=np.inf) < 2 or not items:
        raise ValueError(f"{items} items are too few for an error; there must be two in every task")
    weights = 1 / (len(sizes) * sizes[strata])
    by_item = scores.mean(axis=1)
    means = np.stack([np.bincount(strata, row) / sizes for row in by_item])
    influence = weights * (by_item - means[:, strata])
    if clusters is None:
        influence *= np.sqrt(sizes / (sizes - 1))[strata]
        freedom = float(items - len(sizes))
    else:
        drawn = int(clusters.max()) + 1
        if drawn < 2:
            raise ValueError("all items are of one cluster; there must be two for an error")
        influence = np.stack([np.bincount(clusters, row, drawn) for row in influence]) * np.sqrt(drawn / (drawn - 1))
        freedom = float(drawn - 1)
    return Estimates(tuple(names), by_item @ weights, influence @ influence.T, freedom, scores @ weights)


def average(parts: Sequence[Estimates]) -> Estimates:
    """The macro average over k benchmarks or domains, which share no items: the mean of the means.

    Its covariance is sum(S) / k^2, so that a standard error is sqrt(sum se^2) / k. Degrees of freedom are the fewest of
    the parts, which errs to the safe side.

    Raises:
        ValueError: if the parts are not of the same subjects and seeds.
    """
    first, k = parts[0], len(parts)
    for part in parts[1:]:
        if part.names != first.names or part.by_seed.shape != first.by_seed.shape:
            raise ValueError("an average needs the same subjects and seeds in every part")
    return Estimates(
        first.names,
        np.mean([part.values for part in parts], axis=0),
        np.sum([part.covariance for part in parts], axis=0) / k**2,
        min(part.freedom for part in parts),
        np.mean([part.by_seed for part in parts], axis=0),
    )


def with_training(estimates: Estimates) -> Estimates:
    """The same means, with errors over the drawing of items and of training seeds; unchanged below three seeds.

    k subjects by S seeds are a randomised block design. What a seed does to all subjects alike cancels in their
    differences; the rest is taken to be as large for every subject, or two or three seeds could not tell its size. Its
    variance t2, the squared residuals by (k - 1) (S - 1) degrees of freedom, adds t2 / S to that of every mean. The
    noise of items is in t2, too, as far as it differs between seeds, so that the sum errs to the safe side. Degrees of
    freedom are Satterthwaite's (1946) for the mean variance of a difference, rounded down.
    """
    k, seeds = estimates.by_seed.shape
    if k < 2 or seeds < FEWEST_SEEDS:
        return estimates
    by_subject = estimates.by_seed - estimates.by_seed.mean(axis=1, keepdims=True)
    residuals = by_subject - by_subject.mean(axis=0)
    freedom = (k - 1) * (seeds - 1)
    of_training = float((residuals**2).sum()) / freedom / seeds
    # The mean over pairs of S_ii + S_jj - 2 S_ij.
    of_items = 2 * float(np.trace(estimates.covariance) - estimates.covariance.sum() / k) / (k - 1)
    if of_training <= ZERO**2:
        return estimates
    together = (of_items + 2 * of_training) ** 2
    together /= of_items**2 / estimates.freedom + (2 * of_training) ** 2 / freedom
    covariance = estimates.covariance + of_training * np.eye(k)
    return replace(estimates, covariance=covariance, freedom=float(np.floor(together)))
