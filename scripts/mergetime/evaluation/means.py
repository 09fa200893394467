"""The mean of items' scores, with its standard error: what a row of metrics says."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Literal

Row = dict[str, Any]
"""Column to value."""


def mean(
    tasks: Iterable[Sequence[float]],
    weights: Literal["items", "tasks"] = "items",
    stems: Iterable[Sequence[str]] | None = None,
) -> Row:
    """Mean score, its standard error, and the number of items, of the scores of several tasks.

    With ``items``, all items count the same: the error is s / sqrt(n) with n - 1 degrees of freedom (0 for a single
    item). With ``tasks``, every task does: the mean of the k tasks' means, with error sqrt(sum of squared errors) / k.
    Where items share a stem, the error is clustered by it: see :func:`mergetime.uncertainty.estimates.estimate`.
    """
    listed = list(tasks)
    parts = listed if weights == "tasks" else [[score for scores in listed for score in scores]]
    means = [_mean(part) for part in parts]
    sources = [stem for of_task in stems or () for stem in of_task]
    if len(set(sources)) < len(sources):
        influence = [
            (score - task_mean["value"]) / (len(means) * task_mean["items"])
            for task_mean, part in zip(means, parts, strict=True)
            for score in part
        ]
        stderr = _clustered(influence, sources)
    else:
        stderr = math.sqrt(math.fsum(task_mean["stderr"] ** 2 for task_mean in means)) / len(means)
    return {
        "value": math.fsum(task_mean["value"] for task_mean in means) / len(means),
        "stderr": stderr,
        "items": sum(task_mean["items"] for task_mean in means),
    }


def _clustered(influence: Sequence[float], stems: Sequence[str]) -> float:
    """The error of a sum of items' influences where each of G stems is one draw; 0 for a single one."""
    by_stem: dict[str, list[float]] = defaultdict(list)
    for stem, share in zip(stems, influence, strict=True):
        by_stem[stem].append(share)
    variance = math.fsum(math.fsum(shares) ** 2 for shares in by_stem.values())
    return math.sqrt(variance * len(by_stem) / max(1, len(by_stem) - 1))


def _mean(values: Sequence[float]) -> Row:
    count = len(values)
    centre = math.fsum(values) / count
    variance = math.fsum((value - centre) ** 2 for value in values) / max(1, count - 1)
    return {"value": centre, "stderr": math.sqrt(variance / count), "items": count}
