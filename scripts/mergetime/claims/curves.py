"""Scores against duration."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mergetime.claims.results import NotTestableError, Reals


@dataclass(frozen=True)
class Curve:
    """Scores in percent against duration: on the data and on every replicate's draw.

    Attributes:
        multiples: the durations.
        point: scores on the data.
        drawn: scores on the replicates [replicates, durations].
        weights: what each score is the mean of: [durations, cells of :class:`Scores`].
        freedom: degrees of freedom of the scores' covariance.
        items: of the smallest sample.
        answers: how many answers to an item a score is the mean of.
    """

    multiples: Reals
    point: Reals
    drawn: Reals
    weights: Reals
    freedom: float
    items: int
    answers: int = 1

    def at(self, multiple: float) -> "Curve":
        """The curve at one duration.

        Raises:
            NotTestableError: if the study has no such duration.
        """
        return self.of(np.isclose(self.multiples, multiple), f"{multiple:g}x")

    def within(self, shortest: float | None, longest: float | None) -> "Curve":
        """The durations from ``shortest`` to ``longest``; None: no bound."""
        name = f"{shortest or 0:g}x to {longest:g}x" if longest else f"{shortest or 0:g}x or longer"
        return self.of(self.between(shortest, longest), name)

    def between(self, shortest: float | None, longest: float | None) -> npt.NDArray[np.bool_]:
        """Which durations are from ``shortest`` to ``longest``; None: no bound."""
        low, high = shortest or 0.0, longest or np.inf
        chosen: npt.NDArray[np.bool_] = (self.multiples >= low - 1e-9) & (self.multiples <= high + 1e-9)
        return chosen

    def of(self, chosen: npt.NDArray[np.bool_], name: str) -> "Curve":
        """The chosen durations; ``name`` is for the message when there is none."""
        if not chosen.any():
            raise NotTestableError(f"the study keeps no duration of {name}")
        return replace(
            self,
            multiples=self.multiples[chosen],
            point=self.point[chosen],
            drawn=self.drawn[:, chosen],
            weights=self.weights[chosen],
        )

    def mean(self) -> "Curve":
        """The mean over durations, as a curve of one point; which duration it stands for is not said."""
        return replace(
            self,
            multiples=np.array([np.nan]),
            point=self.point.mean(keepdims=True),
            drawn=self.drawn.mean(axis=1, keepdims=True),
            weights=self.weights.mean(axis=0, keepdims=True),
            answers=self.answers * len(self.point),
        )

    def times(self, factor: float) -> "Curve":
        """The scores times a factor."""
        return replace(self, point=factor * self.point, drawn=factor * self.drawn, weights=factor * self.weights)


def joined(curves: Sequence[Curve]) -> Curve:
    """Several curves as one, to choose among all their points."""
    return Curve(
        np.concatenate([curve.multiples for curve in curves]),
        np.concatenate([curve.point for curve in curves]),
        np.concatenate([curve.drawn for curve in curves], axis=1),
        np.concatenate([curve.weights for curve in curves]),
        min(curve.freedom for curve in curves),
        min(curve.items for curve in curves),
        max(curve.answers for curve in curves),
    )
