"""The best duration of every method and domain, and the durations that cannot be told apart from it."""

import pandas as pd

from mergetime.publishing import scores as sc
from mergetime.publishing.best import best_durations
from mergetime.publishing.inputs import Inputs
from mergetime.uncertainty.comparisons import best_set, holm
from mergetime.uncertainty.estimates import Estimates
from mergetime.uncertainty.items import estimates_of

BEST_SET_NOTE = (
    "Durations that cannot be told apart from the best on the same test items: the set holds the best one with 95 % "
    "probability (paired differences, multiple comparisons with the best). Other training seeds are not in it."
)


def optimal_durations(inputs: Inputs, base: str, domains: list[str]) -> pd.DataFrame:
    """Per method and domain: the best duration, its set, and what it gains over T*.

    Args:
        inputs: results, samples and benchmarks; the pool where the study has several at one duration.
        base: the base's id.
        domains: the domains wanted.

    Returns:
        Columns method, space, domain, duration (the best), multiple, value, stderr, boundary, best_set (names from
        short to long, separated by spaces), gain, gain_stderr (percentage points) and gain_p_value (Holm's correction
        over the durations other than T*, since the best is picked from them); gains are null at T*, or without one.

    Raises:
        ValueError: in one line, if scores or samples are incomplete or do not belong together.
    """
    of_base = inputs.results[inputs.results["base"] == base]
    merged = sc.merged_scores(sc.domain_scores(of_base), base, inputs.pool)
    best = best_durations(merged, domains)
    samples = sc.of_pool(inputs.frame("samples"), base, inputs.pool)
    by_cell = dict(list(samples.groupby(["method", "space", "domain"], observed=True)))
    ranks = sc.durations(merged)
    t_star = next(iter(sc.at_t_star(merged)["duration"]), None)
    best_sets = []
    for row in best.itertuples(index=False):
        rows = by_cell.get((row.method, row.space, row.domain))
        if rows is None:
            raise ValueError(f"no samples of {row.method} on {row.domain}; collect the study again")
        known = set(rows["duration"].unique())
        names = [name for name in ranks if name in known]
        estimates = estimates_of(rows, "duration", names, inputs.equal_tasks)
        kept = best_set(estimates)
        if row.duration not in kept:
            raise ValueError(f"results and samples of {row.method} on {row.domain} differ; collect the study again")
        best_sets.append({"best_set": " ".join(kept), **_gain(estimates, str(row.duration), t_star)})
    return pd.concat([best.reset_index(drop=True), pd.DataFrame(best_sets)], axis=1)


def described(names: list[str], scores: pd.DataFrame) -> str:
    """Durations in words: neighbours among the study's as a range, ``0.25x, 1.5–3x``.

    Args:
        names: the durations.
        scores: rows with all durations of the study, and their multiples.
    """
    ranks = sc.durations(scores)
    multiples = dict(zip(scores["duration"], scores["multiple"], strict=True))
    runs: list[list[str]] = []
    for name in sorted(names, key=ranks.index):
        if runs and ranks.index(name) == ranks.index(runs[-1][-1]) + 1:
            runs[-1].append(name)
        else:
            runs.append([name])
    return ", ".join(span(run[0], run[-1], multiples) for run in runs)


def span(first: str, last: str, multiples: dict[str, float]) -> str:
    """``1.5–3x`` for two multiples of T*, ``step_64–step_512`` for others, one name where they are the same."""
    if first == last:
        return first
    are_multiples = pd.notna(multiples[first]) and pd.notna(multiples[last])
    return f"{multiples[first]:g}–{multiples[last]:g}x" if are_multiples else f"{first}–{last}"


def _gain(estimates: Estimates, best: str, t_star: str | None) -> dict[str, float | None]:
    if t_star not in estimates.names or best == t_star:
        return {"gain": None, "gain_stderr": None, "gain_p_value": None}
    others = [name for name in estimates.names if name != t_star]
    differences = [estimates.difference(name, t_star) for name in others]
    at = others.index(best)
    p_value = holm([difference.p_value for difference in differences])[at]
    gain = differences[at]
    return {"gain": 100 * gain.value, "gain_stderr": 100 * gain.stderr, "gain_p_value": p_value}
