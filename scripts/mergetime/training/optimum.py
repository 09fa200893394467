"""T*, the optimizer step of the lowest validation loss, and when a run has gone far enough to know it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mergetime.core.duration_ids import duration_id


@dataclass(frozen=True)
class Point:
    """A validation after ``step`` optimizer steps; step 0 is the base.

    ``loss`` is in nats per item; ``accuracy`` is the share of items whose most likely label is right. Items are what
    the loss of a modality is a mean over: the tokens of responses, or whole examples.
    """

    step: int
    loss: float
    accuracy: float = math.nan


@dataclass(frozen=True)
class Optimum:
    """T* and what is known of it.

    ``boundary`` is None for an interior minimum; ``lower`` where no step improves on the base; ``upper`` where the
    loss was lowest at a step (``lowest_step``) whose longest multiple is beyond ``max_steps``, so that T* is the
    best step whose multiples all exist.
    """

    step: int
    loss: float
    boundary: Literal["lower", "upper"] | None
    lowest_step: int


def lowest(points: Sequence[Point]) -> Point:
    """The point of the lowest loss, the first of equals: a flat curve has its optimum where it became flat."""
    # NaN never is the lowest.
    return min(points, key=lambda point: (math.isnan(point.loss), point.loss, point.step))


def passed(curve: Sequence[Point], longest: float) -> bool:
    """Whether the run has reached ``longest`` times the step of the lowest loss so far.

    A later, lower minimum moves the end.
    """
    trained = [point for point in curve if point.step > 0]
    return bool(trained) and trained[-1].step >= longest * lowest(trained).step


def find_optimum(curve: Sequence[Point], *, longest: float, max_steps: int) -> Optimum:
    """T* of a finished run.

    Args:
        curve: validation losses at rising steps, step 0 first.
        longest: the largest multiple of T* that the study keeps, at least 1.
        max_steps: the step at which training ended at the latest.

    Raises:
        ValueError: if there is no evaluation whose multiples all fit into ``max_steps``, or every loss is NaN.
    """
    trained = [point for point in curve if point.step > 0]
    within = [point for point in trained if point.step * longest <= max_steps]
    if not within or math.isnan(lowest(within).loss):
        raise ValueError(
            f"no finite validation loss at a step up to {max_steps} / {longest:g}; lower learning_rate or save_every"
        )
    best, least = lowest(within), lowest(trained)
    start = next((point.loss for point in curve if point.step == 0), math.inf)
    boundary: Literal["lower", "upper"] | None = None
    if least.loss < best.loss:
        boundary = "upper"
    elif best.loss >= start:
        boundary = "lower"
    return Optimum(best.step, best.loss, boundary, least.step)


def steps_of(multiples: Sequence[float], optimum: int) -> dict[str, int]:
    """Duration id to step, for multiples of T* in quarters.

    Raises:
        ValueError: if a multiple falls between two steps.
    """
    steps = {duration_id(multiple): multiple * optimum for multiple in multiples}
    between = [name for name, step in steps.items() if step != int(step)]
    if between:
        raise ValueError(f"durations {', '.join(between)} of T* = {optimum} fall between steps")
    return {name: int(step) for name, step in steps.items()}
