"""The learning rate of every step, as a function of the step and the validations before it.

Nothing here has a state, so that a run that was resumed has the rates of one that was not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mergetime.config.experts import Course, Monitor, Training
from mergetime.training.optimum import Point


def score(point: Point, monitor: Monitor) -> float:
    """What is watched, the higher the better; NaN, from a run that diverged, is the lowest."""
    value = -point.loss if monitor == "loss" else point.accuracy
    return -math.inf if math.isnan(value) else value


def improvements(points: Sequence[Point], monitor: Monitor) -> list[bool]:
    """Of each point, whether its score is above that of every point before it."""
    best, improved = -math.inf, []
    for point in points:
        improved.append(score(point, monitor) > best)
        best = max(best, score(point, monitor))
    return improved


@dataclass(frozen=True)
class Schedule:
    """A linear warm-up to ``peak``, then one of four courses.

    ``constant`` stays; ``cosine`` and ``linear`` reach 0 at step ``total``, both as transformers defines them;
    ``plateau`` multiplies the rate by ``factor`` after ``patience`` validations in a row without an improvement of
    ``monitor``: validations within the warm-up do not count, and the count starts anew after a reduction ("Less Is
    More: Undertraining Experts Improves Model Upcycling", appendix J).
    """

    kind: Course
    peak: float
    warmup: int
    total: int
    monitor: Monitor = "loss"
    factor: float = 0.5
    patience: int = 3

    def rate(self, done: int, curve: Sequence[Point]) -> float:
        """The rate of the step after ``done`` steps, given the validations up to then."""
        return self._rate(done, self.reductions(curve)[-1] if self.kind == "plateau" and curve else 0)

    def rates(self, curve: Sequence[Point]) -> list[float]:
        """Of each validation, the rate of the step after it."""
        return [self._rate(point.step, count) for point, count in zip(curve, self.reductions(curve), strict=True)]

    def reductions(self, curve: Sequence[Point]) -> list[int]:
        """Of each validation, how often the plateau schedule has reduced the rate up to it."""
        counted = [point for point in curve if point.step > self.warmup]
        counts, without = [0] * (len(curve) - len(counted)), 0
        for improved in improvements(counted, self.monitor):
            without = 0 if improved else without + 1
            reduced = without == self.patience
            counts.append((counts[-1] if counts else 0) + reduced)
            without = 0 if reduced else without
        return counts

    def _rate(self, done: int, reductions: int) -> float:
        if done < self.warmup:
            return self.peak * done / max(1, self.warmup)
        left = max(0, self.total - done) / max(1, self.total - self.warmup)
        match self.kind:
            case "constant":
                return self.peak
            case "linear":
                return self.peak * left
            case "cosine":
                return self.peak * 0.5 * (1 + math.cos(math.pi * (1 - left)))
            case "plateau":
                return self.peak * self.factor**reductions


def schedule_of(training: Training) -> Schedule:
    """The schedule that a config's section on training describes."""
    return Schedule(
        kind=training.schedule,
        peak=training.learning_rate,
        warmup=training.warmup_steps,
        total=training.max_steps,
        monitor=training.monitor,
        factor=training.plateau.factor,
        patience=training.plateau.patience,
    )
