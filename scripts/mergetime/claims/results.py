"""What statistics of claims give: a value with what is known of its error, or that it cannot be told."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Reals = npt.NDArray[np.float64]


NO_ITEM = "no item tells the models apart"
ALL_ALIKE = "every item shows the same difference, so that its error is not known"


FEW_ITEMS = "what tells it from other durations weighs no more than a handful of items (‡ in tables)"


class NotTestableError(Exception):
    """The study has not measured what a claim is about; the text says what is missing, in one line."""


@dataclass(frozen=True)
class Draws:
    """A statistic: its value on the data, and on every replicate; ``items`` counts the stems of the smallest sample."""

    value: float
    replicates: Reals
    items: int


@dataclass(frozen=True)
class Estimate:
    """A statistic with its standard error in the unit of ``value``, Student's t with ``freedom`` degrees.

    ``least`` is the smallest value that it can have at all, ``remark`` what it rests on, where that must be said.
    """

    value: float
    stderr: float
    freedom: float
    least: float = -np.inf
    remark: str | None = None


@dataclass(frozen=True)
class Candidates:
    """A statistic of best durations: its value on the data, and those that cannot be told apart from it at 95 %.

    ``possible`` are the values that it can have with the durations that the study keeps, ``remark`` what it rests on,
    where that must be said.
    """

    value: float
    values: Reals
    possible: Reals
    remark: str | None = None


@dataclass(frozen=True)
class Limit:
    """The largest value that a statistic can take at all, given what it is compared with, and why."""

    value: float
    because: str


@dataclass(frozen=True)
class Bounds:
    """A statistic with its 95 % interval, and the largest value that it can take."""

    value: float
    low: float
    high: float
    limit: Limit | None = None


Result = Draws | Estimate | Bounds | Candidates
"""What a statistic gives."""
