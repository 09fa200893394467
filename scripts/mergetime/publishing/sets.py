"""The best duration of every method and domain, and the durations that cannot be told apart from it."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mergetime.publishing import scores as sc
from mergetime.publishing.best import best_durations
from mergetime.publishing.inputs import Inputs
from mergetime.publishing.table import DOUBLE_DAGGER
from mergetime.uncertainty.comparisons import best_set, holm
from mergetime.uncertainty.estimates import FEWEST_DISCORDANT, FEWEST_SEEDS, ZERO, Estimates, with_training
from mergetime.uncertainty.items import ItemScores, estimated, scores_by_item

NO_ITEM = "no item differs"
_SAME = ["base", "subject_kind", "pool", "pool_family", "draw", "recipe"]
"""Columns of samples that are the same in all rows of a pool, once it is chosen."""
_FEW_ITEMS_NOTE = (
    f"{DOUBLE_DAGGER} Fewer than {FEWEST_DISCORDANT} test items tell the best duration from one outside its set, or, "
    "where none is outside, from any other."
)
_NO_ITEM_NOTE = (
    f"{NO_ITEM[0].upper()}{NO_ITEM[1:]}: all durations have the same score on every test item; none is best."
)


def best_set_notes(best: pd.DataFrame) -> list[str]:
    """What the sets of :func:`optimal_durations` mean, and the marks that they need."""
    seeds = int(best["seeds"].max())
    if seeds >= FEWEST_SEEDS:
        of, over = "the best one", f"items and {seeds} training seeds"
    else:
        of, over = "the best of these trained models, which other seeds may change,", "items"
    notes = [
        f"Durations that cannot be told apart from the best on the same test items: the set holds {of} with 95 % "
        f"probability (paired differences over {over}, multiple comparisons with the best). Of equal durations, all "
        "are printed."
    ]
    if best["no_item"].any():
        notes.append(_NO_ITEM_NOTE)
    if best["few_items"].any():
        notes.append(_FEW_ITEMS_NOTE)
    return notes


def optimal_durations(inputs: Inputs, base: str, domains: list[str]) -> pd.DataFrame:
    """Per method and domain: the best duration, its set, and what it gains over T*.

    Args:
        inputs: results, samples and benchmarks; the pool where the study has several at one duration.
        base: the base's id.
        domains: the domains wanted.

    Returns:
        Columns method, space, domain, duration (the best; of equals the shortest), multiple, value, stderr, seeds,
        boundary; best_set and equal_best (names from short to long, separated by spaces: the set, with training seeds
        in its errors where there are three or more, and those of the highest score); discordant (the fewest items on
        which the best and one outside the set score differently; where none is outside, the most on which the best and
        any other do; null for a single duration), no_item and few_items (whether these are none, or fewer than
        ``FEWEST_DISCORDANT``); gain, gain_stderr (percentage points) and gain_p_value (Holm's correction over the
        durations other than T*, since the best is picked from them), all three over items alone; gains are null where
        T* is among the best, or there is none.

    Raises:
        ValueError: in one line, if scores or samples are incomplete or do not belong together.
    """
    of_base = inputs.results[inputs.results["base"] == base]
    merged = sc.merged_scores(sc.domain_scores(of_base), base, inputs.pool)
    best = best_durations(merged, domains)
    samples = sc.of_pool(inputs.frame("samples"), base, inputs.pool)
    by_cell = dict(list(samples.drop(columns=_SAME).groupby(["method", "space", "domain"], observed=True)))
    ranks = sc.durations(merged)
    t_star = next(iter(sc.at_t_star(merged)["duration"]), None)
    sets = []
    for row in best.itertuples(index=False):
        rows = by_cell.get((row.method, row.space, row.domain))
        if rows is None:
            raise ValueError(f"no samples of {row.method} on {row.domain}; collect the study again")
        known = set(rows["duration"].unique())
        names = [name for name in ranks if name in known]
        benchmarks = scores_by_item(rows, "duration", names, inputs.equal_tasks)
        of_cell = _set_of(names, benchmarks, str(row.duration), t_star)
        if of_cell is None:
            raise ValueError(f"results and samples of {row.method} on {row.domain} differ; collect the study again")
        sets.append(of_cell)
    return pd.concat([best.reset_index(drop=True), pd.DataFrame(sets)], axis=1)


def _set_of(
    names: list[str], benchmarks: Sequence[ItemScores], best: str, t_star: str | None
) -> dict[str, object] | None:
    """The columns of :func:`optimal_durations` that rest on samples; None if the best is not best by these."""
    estimates = estimated(names, benchmarks)
    kept = best_set(with_training(estimates))
    highest = estimates.values.max()
    equal = [name for name, value in zip(names, estimates.values, strict=True) if highest - value <= ZERO]
    if best not in kept:
        return None
    apart = np.sum([part.discordant() for part in benchmarks], axis=0)[names.index(best)].tolist()
    outside = [apart[at] for at, name in enumerate(names) if name not in kept]
    others = [apart[at] for at, name in enumerate(names) if name != best]
    discordant = min(outside) if outside else max(others, default=None)
    return {
        "best_set": " ".join(kept),
        "equal_best": " ".join(equal),
        "discordant": discordant,
        "no_item": discordant == 0,
        "few_items": discordant is not None and 0 < discordant < FEWEST_DISCORDANT,
        **_gain(estimates, best, None if t_star in equal else t_star),
    }


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
    if t_star not in estimates.names:
        return {"gain": None, "gain_stderr": None, "gain_p_value": None}
    others = [name for name in estimates.names if name != t_star]
    differences = [estimates.difference(name, t_star) for name in others]
    at = others.index(best)
    p_value = holm([difference.p_value for difference in differences])[at]
    gain = differences[at]
    return {"gain": 100 * gain.value, "gain_stderr": 100 * gain.stderr, "gain_p_value": p_value}
