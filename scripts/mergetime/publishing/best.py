"""The two readings of "best over all durations".

The paper's tables 3-5 take each domain's best duration by itself, and average those maxima: no single model attains
that. The other reading picks one duration, the one with the highest average, and reports what that model scores.

Both are maxima over durations of test scores, so they lie above what a fresh test set would show; their standard
errors are those of the picked scores and do not hold the picking.
"""

import pandas as pd

from mergetime.publishing.scores import AVERAGE, durations, over_seeds, with_average

_METHOD = ["method", "space"]


def best_per_domain(merged: pd.DataFrame, domains: list[str]) -> pd.DataFrame:
    """Reading (a): each domain at its own best duration, and the mean of those maxima (tables 3-5 of the paper).

    With several seeds, one duration is picked for all of them, by the mean over seeds.

    Args:
        merged: as :func:`mergetime.publishing.scores.merged_scores` gives them, one row per seed.
        domains: the accuracy domains.

    Returns:
        One row per method and domain, and the average where every domain has a score; ``duration`` is the one picked,
        null for the average. Of equal durations, the shortest is picked.
    """
    scores = merged[merged["domain"].isin(domains)]
    picked = _highest(over_seeds(scores), [*_METHOD, "domain"]).drop(columns="equal_best")
    # The average mixes durations, so it has none: the column waits until it is taken.
    chosen = scores.merge(picked, on=[*_METHOD, "domain", "duration"]).drop(columns=["duration", "multiple"])
    best = over_seeds(with_average(chosen, domains))
    return best.merge(picked, on=[*_METHOD, "domain"], how="left")


def best_single_duration(merged: pd.DataFrame, domains: list[str]) -> pd.DataFrame:
    """Reading (b): per method, the one duration with the highest average, with its scores in every domain.

    Durations that lack a domain have no average and are not picked; a method without any complete duration is left
    out. Arguments and columns as in :func:`best_per_domain`; here the average has its duration too, and ``equal_best``
    names all durations of that average, separated by spaces.
    """
    scores = over_seeds(with_average(merged, domains))
    picked = _highest(scores[scores["domain"] == AVERAGE], _METHOD)
    return scores.merge(picked, on=[*_METHOD, "duration"]).drop(columns="multiple")


def best_durations(merged: pd.DataFrame, domains: list[str]) -> pd.DataFrame:
    """Per method and domain, the best duration as in :func:`best_per_domain`, with its score; safety too, if listed."""
    means = over_seeds(merged[merged["domain"].isin(domains)])
    picked = _highest(means, [*_METHOD, "domain"]).drop(columns="equal_best")
    return means.merge(picked, on=[*_METHOD, "domain", "duration"])


def _highest(scores: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Per ``keys``, the shortest duration of the highest value; ``equal_best`` names all of that value."""
    order = {duration: rank for rank, duration in enumerate(durations(scores))}
    # Rounded, so that equal means over seeds stay equal whatever order they were summed in.
    ranked = scores.assign(rank=scores["duration"].map(order), value=scores["value"].round(9))
    highest = ranked.groupby(keys)["value"].transform("max")
    best = ranked[ranked["value"] == highest].sort_values("rank").groupby(keys, sort=False)["duration"]
    return best.agg(duration="first", equal_best=" ".join).reset_index()
