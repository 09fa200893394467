"""From the rows of results.parquet to the scores that tables and figures show, with their errors.

All values are in percent. A frame of scores has one row per subject, seed and domain, and the columns of
:data:`MEASURES` beside those that identify the row.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mergetime.publishing.names import Names, ordered
from mergetime.uncertainty.proportions import intervals

AVERAGE = "average"
"""Stands in the domain column for the mean over the accuracy domains."""
T_STAR = 1.0
"""The duration T* itself, as a multiple."""

DEFAULT_RECIPE = "default"
"""The recipe that adds nothing to the names of pools; as ``mergetime.config.experts.DEFAULT``."""

MEASURES = ["value", "stderr", "low", "high", "items", "boundary"]
"""The mean, its error and 95 % interval over items, their number, and whether a T* behind it is at the boundary."""
_SUBJECT = [
    *("base", "subject_kind", "expert", "recipe", "pool", "pool_family", "draw", "method", "algorithm", "space"),
    *("duration", "multiple", "seed"),
]

MethodKey = tuple[str, str]
"""A method's id in the config, and the space that it merges in."""


def test_rows(results: pd.DataFrame) -> pd.DataFrame:
    """The rows that tables may report: primary metrics on the test split, of methods as they are configured.

    The points of a sweep (column ``axis``) are left out: they carry the id of the method that they vary.

    Raises:
        ValueError: if there are none, or a subject has two primary metrics on one benchmark.
    """
    rows = results[(results["split"] == "test") & results["primary"].astype(bool) & results["axis"].isna()]
    if rows.empty:
        raise ValueError("the results hold no primary metric on the test split; give suites.test in the config")
    repeated = rows[rows.duplicated([*_SUBJECT, "subject", "benchmark"])]
    if not repeated.empty:
        first = repeated.iloc[0]
        raise ValueError(f"{first['subject']} has two primary metrics on {first['benchmark']}; a benchmark has one")
    return rows


def domain_scores(results: pd.DataFrame) -> pd.DataFrame:
    """One score per subject, seed and domain, in percent: the mean over the domain's benchmarks.

    Errors and intervals of a mean over benchmarks are as :func:`_over_parts` makes them.

    Raises:
        ValueError: if a subject lacks one of the benchmarks that others have in the domain.
    """
    rows = test_rows(results).reset_index(drop=True)
    benchmark_counts = rows.groupby(["base", "domain"])["benchmark"].nunique()
    frame = pd.DataFrame(
        {
            **{name: rows[name] for name in [*_SUBJECT, "domain"]},
            **{name: 100 * rows[name] for name in ("value", "stderr")},
            **_intervals(rows),
            "items": rows["items"],
            "boundary": rows["t_star_at_boundary"].astype(bool),
        }
    )
    scores = _over_parts(frame, [*_SUBJECT, "domain"])
    expected = [benchmark_counts[base, domain] for base, domain in zip(scores["base"], scores["domain"], strict=True)]
    short = scores[scores["parts"] != expected]
    if not short.empty:
        raise ValueError(f"{name_of(short.iloc[0])} lacks a benchmark of its domain; evaluate it and collect again")
    return scores.drop(columns="parts")


def _intervals(rows: pd.DataFrame) -> dict[str, NDArray[np.float64]]:
    """The ends of the rows' 95 % intervals over items, in percent; the subjects of a base share a design effect."""
    numbers = rows[["value", "stderr", "items"]].to_numpy(dtype=float)
    low, high = np.empty(len(rows)), np.empty(len(rows))
    for of_benchmark in rows.groupby(["base", "benchmark"]).indices.values():
        ends = intervals(*numbers[of_benchmark].T)
        low[of_benchmark], high[of_benchmark] = 100 * ends.low, 100 * ends.high
    return {"low": low, "high": high}


def _over_parts(scores: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Per ``keys``, the mean over k parts that share no items, with their number as ``parts``.

    Its error is sqrt(sum of stderr^2) / k. Its interval reaches to either side as far as sqrt(sum of squares) / k of
    the parts' reaches to that side (Zou and Donner 2008), so that a part at 0 or 100 % makes no average certain.
    """
    squared = {
        "variance": scores["stderr"] ** 2,
        "below": (scores["value"] - scores["low"]) ** 2,
        "above": (scores["high"] - scores["value"]) ** 2,
    }
    groups = scores.assign(**squared).groupby(keys, dropna=False, sort=False)
    sums = {name: (name, "sum") for name in [*squared, "items"]}
    means = groups.agg(value=("value", "mean"), **sums, boundary=("boundary", "any"), parts=("value", "size"))
    stderr, below, above = (np.sqrt(means[name]) / means["parts"] for name in squared)
    means = means.assign(stderr=stderr, low=means["value"] - below, high=means["value"] + above).reset_index()
    return means[[*keys, *MEASURES, "parts"]]


def name_of(score: pd.Series) -> str:
    """The subject of a row, in words for a message."""
    parts = [score.get(name) for name in ("base", "expert", "method", "duration", "domain")]
    return " ".join(str(part) for part in parts if part is not None and not pd.isna(part))


def with_average(scores: pd.DataFrame, domains: list[str]) -> pd.DataFrame:
    """``scores`` of the given domains and, per subject and seed that has all k of them, their mean as a domain.

    Errors and intervals are as :func:`_over_parts` makes them. A mean over fewer domains would not be comparable, so
    there is none (the paper's table 5 does print one: Base lacks Code there).
    """
    of_domains = scores[scores["domain"].isin(domains)]
    keys = [name for name in of_domains.columns if name not in [*MEASURES, "domain"]]
    means = _over_parts(of_domains, keys)
    means = means[means["parts"] == len(domains)]
    return pd.concat([of_domains, means.assign(domain=AVERAGE)[of_domains.columns]], ignore_index=True)


def over_seeds(scores: pd.DataFrame) -> pd.DataFrame:
    """The mean over seeds, with the items' error and the seeds' spread kept apart.

    ``stderr`` is the mean of the seeds' standard errors: all seeds are scored on the same items, so this error does
    not shrink with their number (the mean is its upper bound), nor does the interval, whose ends are means too.
    ``seed_spread`` is the standard deviation over seeds (n - 1), null for one seed; ``seeds`` counts them.

    Raises:
        ValueError: if a subject lacks a seed that others have, since means over other seeds are not comparable.
    """
    keys = [name for name in scores.columns if name not in [*MEASURES, "seed"]]
    groups = scores.groupby(keys, dropna=False, sort=False)
    of_items = {name: (name, "mean") for name in ("value", "stderr", "low", "high")}
    means = groups.agg(**of_items, items=("items", "max"), boundary=("boundary", "any"))
    means["seed_spread"] = groups["value"].std(ddof=1)
    means["seeds"] = groups.size()
    means = means.reset_index()
    everyone = scores["seed"].nunique(dropna=False)
    short = means[means["seeds"] != everyone]
    if not short.empty:
        subject = short.iloc[0]
        raise ValueError(
            f"{name_of(subject)} has {subject['seeds']} of {everyone} seeds; evaluate the rest and collect again"
        )
    return means


def base_scores(scores: pd.DataFrame, base: str) -> pd.DataFrame:
    """The scores of the base itself."""
    rows = scores[(scores["base"] == base) & (scores["subject_kind"] == "base")]
    return rows[["domain", "seed", *MEASURES]]


def own_expert_scores(scores: pd.DataFrame, base: str, pool: str | None = None) -> pd.DataFrame:
    """The scores of every expert on the domain that it was trained on, at every duration.

    Where experts were trained by several recipes, those of the recipe of the pool that :func:`merged_scores` is about.
    """
    rows = scores[(scores["base"] == base) & (scores["subject_kind"] == "expert")]
    rows = rows[(rows["expert"] == rows["domain"]) & rows["duration"].notna()]
    if rows["recipe"].nunique() > 1:
        rows = rows[rows["recipe"].isin(of_pool(scores, base, pool)["recipe"].dropna())]
    return rows[["domain", "duration", "multiple", "seed", *MEASURES]]


def merged_scores(scores: pd.DataFrame, base: str, pool: str | None = None) -> pd.DataFrame:
    """The scores of the merged models of ``base`` whose experts share one duration.

    Args:
        scores: as :func:`domain_scores` gives them.
        base: the base's id.
        pool: which pool, as the config names it; None where the study merges only one set of experts.

    Raises:
        ValueError: if there are none, or there are several pools to choose from.
    """
    rows = of_pool(scores, base, pool)
    return rows[["method", "algorithm", "space", "duration", "multiple", "domain", "seed", *MEASURES]]


def of_pool(rows: pd.DataFrame, base: str, pool: str | None = None) -> pd.DataFrame:
    """The rows, of scores or of samples, that :func:`merged_scores` is about; arguments and errors as there."""
    every_pool = shown(rows[(rows["base"] == base) & (rows["subject_kind"] == "merged")])
    names = sorted(every_pool["pool"].unique())
    known = ", ".join(names) or "none"
    of_one = every_pool if pool is None else every_pool[every_pool["pool"] == pool]
    if of_one.empty:
        wanted = f"pool {pool}" if pool else "any pool"
        raise ValueError(f"base {base} has no model merged at one duration from {wanted}; pools there are: {known}")
    if pool is None and len(names) > 1:
        raise ValueError(f"base {base} has several pools at one duration ({known}); name one with --pool")
    return of_one


def shown(rows: pd.DataFrame, pool: str | None = None) -> pd.DataFrame:
    """The rows of pools at one duration, of the one named ``pool`` if it is given; none of random subsets.

    The column ``pool`` then holds names without durations: the key below ``pools`` in the config; of a key whose
    experts were trained by several recipes, also the recipe, as in same_duration_fast, unless it is the default.
    """
    rows = rows[rows["duration"].notna() & rows["draw"].isna()]
    rows = rows.assign(pool=_pool_names(rows))
    return rows if pool is None else rows[rows["pool"] == pool]


def _pool_names(rows: pd.DataFrame) -> pd.Series:
    # Few kinds, and samples have them on a million rows.
    kind = rows.groupby(["pool_family", "recipe"], sort=False, dropna=False, observed=True).ngroup()
    first = ~kind.duplicated()
    families, recipes = (rows.loc[first, name].astype("object") for name in ("pool_family", "recipe"))
    with_recipe = families.duplicated(keep=False) & recipes.notna() & (recipes != DEFAULT_RECIPE)
    names = [
        f"{family}_{recipe}" if shows_recipe else family
        for family, recipe, shows_recipe in zip(families, recipes, with_recipe, strict=True)
    ]
    return kind.map(pd.Series(names, index=kind[first], dtype="str"))


def at_t_star(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores at 1 x T*; empty for a study whose durations are step counts or skip T*."""
    return scores[scores["multiple"] == T_STAR]


def bases(results: pd.DataFrame) -> list[str]:
    """The bases, in the order of the results."""
    return list(dict.fromkeys(results["base"]))


def domains(scores: pd.DataFrame, names: Names) -> list[str]:
    """The domains measured: the paper's in the paper's order, then others in the order of the results."""
    return ordered(dict.fromkeys(scores["domain"]), names.domains)


def accuracy_domains(scores: pd.DataFrame, names: Names) -> list[str]:
    """The domains that averages run over: all but those that are measured by refusals.

    Raises:
        ValueError: if there is none.
    """
    averaged = [domain for domain in domains(scores, names) if domain not in (*names.refusals, AVERAGE)]
    if not averaged:
        apart = " and ".join(names.refusals) or "none"
        raise ValueError(f"the results measure no domain but {apart}; averages need another in suites.test")
    return averaged


def methods(merged: pd.DataFrame, names: Names) -> dict[MethodKey, str]:
    """The algorithm of each method: the paper's in the paper's order, then others in the order of the results."""
    kinds = merged[["method", "space", "algorithm"]].drop_duplicates()
    algorithms = {(str(row.method), str(row.space)): str(row.algorithm) for row in kinds.itertuples(index=False)}
    family_of = families(algorithms)
    order = ordered(dict.fromkeys(family_of.values()), names.methods)
    return dict(sorted(algorithms.items(), key=lambda item: order.index(family_of[item[0]])))


def families(algorithms: Mapping[MethodKey, str]) -> dict[MethodKey, str]:
    """What each method shares with the same method in the other space: the id of its algorithm.

    Of several methods with one algorithm in one space, such as two densities of ties, only the one whose id is that of
    the algorithm stands for it; the others are families of their own, called by their ids.
    """
    places = [(algorithm, space) for (_, space), algorithm in algorithms.items()]
    taken = set(algorithms.values())
    family_of = {}
    for (method, space), algorithm in algorithms.items():
        if method == algorithm or places.count((algorithm, space)) == 1:
            family_of[method, space] = algorithm
        else:
            family_of[method, space] = f"{method} ({algorithm})" if method in taken else method
    return family_of


def labels(algorithms: Mapping[MethodKey, str], names: Names) -> dict[MethodKey, str]:
    """What each method is called: the paper's by its name there, others by their id.

    The space is appended where the family has two and the id does not say which. Ids that would be called the same
    are called by their id.
    """
    family_of = families(algorithms)
    label_of = {}
    for (method, space), family in family_of.items():
        two = len({other_space for (_, other_space), other in family_of.items() if other == family}) > 1
        name = names.methods.get(family) if family == algorithms[method, space] else None
        says = name is None and space in method
        label_of[method, space] = f"{name or method} ({space})" if two and not says else name or method
    called = list(label_of.values())
    return {key: label if called.count(label) == 1 else f"{key[0]} ({key[1]})" for key, label in label_of.items()}


def family_label(name: str, names: Names) -> str:
    """What a family of methods is called, whatever its spaces."""
    return names.methods.get(name, name)


def base_at(results: pd.DataFrame, position: int, name: str) -> str:
    """The base that the table ``name`` is about, by its position among the study's bases.

    Raises:
        ValueError: if the study has fewer.
    """
    known = bases(results)
    if position >= len(known):
        raise ValueError(
            f"{name} is about base {position + 1} of a study; the results hold {len(known)}: {', '.join(known)}"
        )
    return known[position]


def durations(scores: pd.DataFrame) -> list[str]:
    """The duration ids from short to long: multiples of T* first, then step counts."""
    pairs = dict(zip(scores["duration"].dropna(), scores.loc[scores["duration"].notna(), "multiple"], strict=True))
    return sorted(pairs, key=lambda duration: _length(duration, pairs[duration]))


def _length(duration: str, multiple: float | None) -> tuple[bool, float, str]:
    if multiple is not None and not pd.isna(multiple):
        return False, float(multiple), duration
    digits = duration.rpartition("_")[2]
    return True, float(digits) if digits.isdigit() else float("inf"), duration
