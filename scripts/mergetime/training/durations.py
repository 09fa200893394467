"""Which steps of a run become experts: when it ends, what has to be saved, and what a finished run keeps.

All from the validation curve alone, so that a run that was resumed decides as one that was not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mergetime.config import experts
from mergetime.config.experts import StoppingRule, Training
from mergetime.core.duration_ids import step_id
from mergetime.core.quarters import QUARTERS
from mergetime.training.optimum import Optimum, Point, find_optimum, lowest, passed, steps_of
from mergetime.training.schedule import Schedule, improvements, schedule_of, score


class DurationRule(Protocol):
    """Which durations experts are kept at: when a run ends, and which of its steps become experts."""

    @property
    def every(self) -> int:
        """Optimizer steps between validations."""

    @property
    def last_step(self) -> int:
        """The step at which training ends at the latest."""

    def validates(self, step: int) -> bool:
        """Whether there is a validation after ``step``."""

    def over(self, curve: Sequence[Point]) -> bool:
        """Whether nothing that training could still do would change an expert."""

    def may_be_kept(self, step: int, curve: Sequence[Point]) -> bool:
        """Whether the weights of ``step`` can still become an expert, given the validations so far."""

    def optimum(self, curve: Sequence[Point]) -> Optimum:
        """T* of a finished run; errors as :func:`find_optimum` gives them."""

    def kept(self, curve: Sequence[Point]) -> dict[str, int]:
        """Of a finished run, duration id to step."""


def _last(curve: Sequence[Point]) -> int:
    return curve[-1].step if curve else -1


@dataclass(frozen=True)
class MultiplesOfOptimum:
    """Multiples of T*, in quarters; training ends when the longest of them is reached."""

    multiples: tuple[float, ...]
    save_every: int
    last_step: int

    @property
    def every(self) -> int:
        """Four saved steps, so that every quarter of a validated step is one."""
        return QUARTERS * self.save_every

    @property
    def longest(self) -> float:
        """The largest multiple, at least 1."""
        return max(1.0, *self.multiples)

    def validates(self, step: int) -> bool:
        """Only where every quarter of the step was saved, so that it can be T*."""
        return step % self.every == 0

    def over(self, curve: Sequence[Point]) -> bool:
        """Whether training has reached the longest multiple of T*."""
        return passed(curve, self.longest)

    def may_be_kept(self, step: int, curve: Sequence[Point]) -> bool:
        """Whether ``step`` is a multiple of the best T* so far, or of a step that has yet to be validated."""
        return any(self._can_be_optimum(step / multiple, curve) for multiple in self.multiples)

    def _can_be_optimum(self, step: float, curve: Sequence[Point]) -> bool:
        if step % self.every or step * self.longest > self.last_step:
            return False
        within = [point for point in curve if point.step > 0 and point.step * self.longest <= self.last_step]
        return step > _last(curve) or (bool(within) and step == lowest(within).step)

    def optimum(self, curve: Sequence[Point]) -> Optimum:
        """T*, of which all multiples exist."""
        return find_optimum(curve, longest=self.longest, max_steps=self.last_step)

    def kept(self, curve: Sequence[Point]) -> dict[str, int]:
        """The multiples of T*."""
        return steps_of(self.multiples, self.optimum(curve).step)


@dataclass(frozen=True)
class FixedSteps:
    """Fixed numbers of optimizer steps."""

    steps: tuple[int, ...]
    save_every: int

    @property
    def every(self) -> int:
        """Four times E, as for multiples, so that curves are comparable."""
        return QUARTERS * self.save_every

    @property
    def last_step(self) -> int:
        """The longest duration."""
        return max(self.steps)

    def validates(self, step: int) -> bool:
        """Also at the end."""
        return step % self.every == 0 or step == self.last_step

    def over(self, curve: Sequence[Point]) -> bool:
        """Never before the last step."""
        return _last(curve) >= self.last_step

    def may_be_kept(self, step: int, curve: Sequence[Point]) -> bool:
        """Whether ``step`` is listed."""
        return step in self.steps

    def optimum(self, curve: Sequence[Point]) -> Optimum:
        """The step of the lowest loss."""
        return find_optimum(curve, longest=1.0, max_steps=self.last_step)

    def kept(self, curve: Sequence[Point]) -> dict[str, int]:
        """The listed steps."""
        return {step_id(step): step for step in self.steps}


@dataclass(frozen=True)
class EarlyStopping:
    """Rules by name, all served by one run: the expert of a rule is the best one that it saw until it stopped."""

    rules: Mapping[str, StoppingRule]
    schedule: Schedule
    last_step: int

    @property
    def every(self) -> int:
        """The most steps between validations that serve every rule."""
        return math.gcd(*(rule.every for rule in self.rules.values()))

    def validates(self, step: int) -> bool:
        """Where a rule may look."""
        return step % self.every == 0

    def seen(self, rule: StoppingRule, curve: Sequence[Point]) -> tuple[list[Point], bool]:
        """The validations that ``rule`` sees until it stops, and whether it has stopped."""
        points = [point for point in curve if point.step > 0 and point.step % rule.every == 0]
        rates = {point.step: rate for point, rate in zip(curve, self.schedule.rates(curve), strict=True)}
        without = 0
        for count, improved in enumerate(improvements(points, self.schedule.monitor), start=1):
            step = points[count - 1].step
            without = 0 if improved else without + 1
            # The warm-up starts below any threshold.
            slow = rule.rate_below is not None and step > self.schedule.warmup and rates[step] < rule.rate_below
            if slow or without == rule.patience:
                return points[:count], True
        return points, False

    def best(self, rule: StoppingRule, curve: Sequence[Point]) -> Point | None:
        """The best validation that ``rule`` saw, the first of equals; None before its first."""
        points, _ = self.seen(rule, curve)
        return max(points, key=lambda point: score(point, self.schedule.monitor), default=None)

    def over(self, curve: Sequence[Point]) -> bool:
        """Whether every rule has stopped."""
        return all(self.seen(rule, curve)[1] for rule in self.rules.values())

    def may_be_kept(self, step: int, curve: Sequence[Point]) -> bool:
        """Whether ``step`` is the best one of a rule, or one that a rule which has not stopped has yet to see."""
        if step > _last(curve):
            return any(step % rule.every == 0 and not self.seen(rule, curve)[1] for rule in self.rules.values())
        return any(best and best.step == step for best in (self.best(rule, curve) for rule in self.rules.values()))

    def optimum(self, curve: Sequence[Point]) -> Optimum:
        """The step of the lowest loss."""
        return find_optimum(curve, longest=1.0, max_steps=self.last_step)

    def kept(self, curve: Sequence[Point]) -> dict[str, int]:
        """The best step of each rule.

        Raises:
            ValueError: naming a rule that saw no validation.
        """
        best = {name: self.best(rule, curve) for name, rule in self.rules.items()}
        blind = [name for name, point in best.items() if point is None]
        if blind:
            raise ValueError(
                f"early_stopping.{blind[0]}: no validation up to step {self.last_step}; lower its every, or raise "
                "max_steps"
            )
        return {name: point.step for name, point in best.items() if point}


def durations_of(durations: experts.Durations, training: Training) -> DurationRule:
    """The durations that the config's sections describe."""
    if durations.multiples_of_optimum:
        return MultiplesOfOptimum(tuple(durations.multiples_of_optimum), training.save_every, training.max_steps)
    if durations.steps:
        return FixedSteps(tuple(durations.steps), training.save_every)
    return EarlyStopping(durations.early_stopping or {}, schedule_of(training), training.max_steps)
