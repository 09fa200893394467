"""Highest scores beside others: margins with their intervals, and best sets that few items tell from the rest."""

import numpy as np
import numpy.typing as npt

from mergetime.claims.curves import Curve
from mergetime.claims.evidence import Scores
from mergetime.claims.results import FEW_ITEMS, NO_ITEM, Bounds, Limit, NotTestableError, Reals
from mergetime.uncertainty.comparisons import Part, margin_of_best
from mergetime.uncertainty.estimates import FEWEST_DISCORDANT, ZERO


def margin(scores: Scores, first: Curve, second: Curve, reference: str = "") -> Bounds:
    """By how much the highest of some scores exceeds the highest of others.

    Args:
        scores: of the base, with their covariance.
        first: the scores whose highest is compared.
        second: those that it is compared with.
        reference: what the highest of ``second`` is, in words: no score can exceed it by more than is left to 100 %.
    """
    weights = np.concatenate([first.weights, second.weights])
    known = margin_of_best(
        first.point,
        second.point,
        weights @ scores.covariance @ weights.T,
        min(first.freedom, second.freedom),
        same=(first.weights[:, None] == second.weights[None, :]).all(axis=2),
        parts=[_part(scores, first, second, domain) for domain in _domains_of(scores, first)],
    )
    if known is None:
        raise NotTestableError(NO_ITEM)
    highest = float(second.point.max())
    limit = Limit(100 - highest, f"{reference} is {highest:.1f} %, and no score exceeds 100 %")
    return Bounds(known.value, known.low, known.high, limit)


def few_items(scores: Scores, curve: Curve, best: int, held: npt.NDArray[np.bool_]) -> str | None:
    """What is said of a best set that few items tell from the rest, as tables mark it; None where enough do.

    Of right and wrong answers, the mean squared difference of two models is the share of items on which they differ.
    """
    differing: Reals = np.zeros(len(curve.point))
    for domain in _domains_of(scores, curve):
        part = _part(scores, curve, curve, domain)
        spread = np.diag(part.covariance)[: len(curve.point)]
        errors = spread + spread[best] - 2 * part.covariance[best, : len(curve.point)]
        gaps = part.first - part.first[best]
        items = scores.freedom[domain] + 1
        differing += ((items - 1) * errors + gaps**2) * items / part.most[0] ** 2
    outside = differing[~held]
    count = outside.min() if len(outside) else np.delete(differing, best).max()
    return FEW_ITEMS if ZERO < count < FEWEST_DISCORDANT - 0.5 else None


def _domains_of(scores: Scores, curve: Curve) -> list[str]:
    """The domains whose scores a curve is a mean of."""
    places = np.flatnonzero(curve.weights.any(axis=0))
    return list(dict.fromkeys(scores.cells[place].domain for place in places))


def _part(scores: Scores, first: Curve, second: Curve, domain: str) -> Part:
    """What the items of a domain bring to two curves; a score is at most 100 %, times its weight.

    A mean over durations, or over seeds, is over as many answers to each item. They may differ, and then it varies less
    than right and wrong ones do.
    """
    here = np.array([cell.domain == domain for cell in scores.cells])
    weights = np.concatenate([first.weights, second.weights])[:, here]
    means = weights @ scores.point[here]
    most, least = (float(100 * side.weights[:, here].sum(axis=1).max()) for side in (first, second))
    covariance = weights @ scores.covariance[np.ix_(here, here)] @ weights.T
    cut = len(first.point)
    answers = max(first.answers, second.answers) * scores.by_seed.shape[1]
    return Part(means[:cut], means[cut:], covariance, (scores.freedom[domain] + 1) * answers, (most, least))
