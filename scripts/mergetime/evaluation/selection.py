"""What validation decides: hyper-parameters of a method, and the members of a greedy soup."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Trial:
    """One step of a greedy soup: the experts tried together, their held-out score, and whether they were kept."""

    members: tuple[str, ...]
    score: float
    kept: bool


def rows_with_judged(rows: Sequence[Mapping[str, Any]], judged: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Metric rows of an evaluation and of what was judged of it; only the judged metric of a benchmark is primary."""
    benchmarks = {row["benchmark"] for row in judged}
    kept = [{**row, "primary": row["primary"] and row["benchmark"] not in benchmarks} for row in rows]
    return kept + [dict(row) for row in judged]


def held_out_score(rows: Sequence[Mapping[str, Any]]) -> float:
    """Mean over benchmarks of the primary metric: a share from 0 to 1, or minus a validation loss in nats per token.

    Raises:
        ValueError: if no row is a primary metric.
    """
    values = [float(row["value"]) for row in rows if row["primary"]]
    if not values:
        raise ValueError("no primary metric among the validation results")
    return sum(values) / len(values)


def best_candidate(scores: Sequence[float]) -> int:
    """The position of the highest score; the first of equals, so that the order in the config decides."""
    return max(range(len(scores)), key=lambda position: (scores[position], -position))


def greedy_soup(scores: Mapping[str, float], evaluate: Callable[[tuple[str, ...]], float]) -> list[Trial]:
    """Greedy soup (Wortsman et al. 2022, Recipe 1): experts by descending score, kept where the mean improves.

    The first trial is the best expert by itself. An expert joins only if the score of the uniform average of all
    members strictly improves, in one pass, as the authors' code does.

    Args:
        scores: held-out score of each expert; equals are taken in the order of their names.
        evaluate: held-out score of the uniform average of some experts.

    Returns:
        All trials in order; the soup is the last one kept.
    """
    order = sorted(scores, key=lambda name: (-scores[name], name))
    trials = [Trial((order[0],), scores[order[0]], True)]
    soup = trials[0]
    for name in order[1:]:
        members = (*soup.members, name)
        score = evaluate(members)
        trial = Trial(members, score, score > soup.score)
        trials.append(trial)
        soup = trial if trial.kept else soup
    return trials
