"""Ends of intervals of a difference of two proportions on the same items, where few items tell them apart.

The error of a difference is estimated from the items that differ. Where these are few, or all of one direction, an end
that is some errors away from the estimate is too near: the larger the true difference, the larger its error. A score
interval takes at each end the error that the difference would have there, as Wilson's does of one proportion.
"""

import numpy as np

from mergetime.uncertainty.estimates import Vector

_UNSEEN = 1e-9
"""Share of the items that answers of a kind have which none has: it grows where a difference asks for them."""
_STEPS = 60


def reach(
    first: Vector, second: Vector, shared: Vector, errors: Vector, critical: Vector, items: float, factor: float
) -> Vector:
    """How far below first - factor second the lower ends of its score intervals are; all arguments broadcast.

    Answers to an item are right or wrong by both, by one or by the other, with shares q. At a difference d, the shares
    that are likeliest, given those seen, are proportional to q / (1 + r x) for the difference x that each kind of item
    makes, with r such that they have the mean d (the multinomial's restricted maximum likelihood; for ``factor`` 1 that
    of Tango 1998, Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design). The end is where d is ``critical`` errors from the estimate, the error being that of these shares, or the
    estimated one where it is larger.

    Args:
        first: proportions, as shares.
        second: those that ``factor`` times is subtracted.
        shared: the share of items that both are right on.
        errors: the estimated standard errors of the differences; 0 where no item differs.
        critical: how many errors an end is away.
        items: how many independent items the proportions are over at most.
        factor: of the second.

    Returns:
        Distances, never negative: the difference that is that much lower is at least -factor.
    """
    first, second, shared, errors, critical = np.broadcast_arrays(first, second, shared, errors, critical)
    makes = np.array([1 - factor, 1.0, -factor, 0.0])
    kinds = np.stack([shared, first - shared, second - shared, 1 - first - second + shared], axis=-1)
    kinds = np.maximum(kinds, _UNSEEN)
    kinds /= kinds.sum(axis=-1, keepdims=True)
    value, variance = _moments(kinds, makes)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Graded scores vary less than right and wrong ones can, until a rare item shows how much they may.
        worth = np.where(errors > 0, np.minimum(variance / errors**2, items), items)
    # 1 + r x is positive for all x while 1 - r factor is: from 1, at the estimate, to almost 0.
    near, far = np.zeros_like(value), np.full_like(value, -np.log(_UNSEEN) + 10)
    for _ in range(_STEPS):
        middle = (near + far) / 2
        tilt = -np.expm1(-middle)[..., None] / factor
        at, there = _moments(kinds / (1 + tilt * makes), makes)
        inside = value - at < critical * np.sqrt(np.maximum(there / worth, errors**2))
        near, far = np.where(inside, middle, near), np.where(inside, far, middle)
    return np.asarray(value - at)


def _moments(kinds: Vector, makes: Vector) -> tuple[Vector, Vector]:
    """Mean and variance of the difference that an item makes, by the (unscaled) shares of the kinds of items."""
    total = kinds.sum(axis=-1)
    mean = (kinds @ makes) / total
    return mean, (kinds @ makes**2) / total - mean**2
