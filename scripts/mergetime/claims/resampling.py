"""Scores by item, with their covariance and resampled.

Where a best duration is concerned, claims rest on the same covariance of means as the tables of best durations
(:mod:`mergetime.uncertainty`); all else rests on a bootstrap, which is not right for maxima. It is paired: a replicate
draws items with replacement, within each task of each benchmark, and every model of the base is scored on the same
draw. So what is hard about an item cancels in differences between models. Items that share a stem, such as translations
of one question, are drawn together.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq
from pyarrow.compute import field as column
from scipy.linalg import block_diag

from mergetime.claims.evidence import Measured, Scores
from mergetime.claims.results import Reals
from mergetime.core import tables
from mergetime.publishing import scores as sc
from mergetime.publishing.names import Names
from mergetime.results import columns
from mergetime.uncertainty.estimates import Estimates, average, estimate

REPLICATES = 2000

_SUBJECT = ["subject_kind", "expert", "method", "space", "multiple"]
_ITEM = ["task", "item", "copy", "stem"]
_NO_SEED = -1
"""Stands for the seed of what is not trained."""
_COLUMNS = [
    *("base", "subject_kind", "subject", "expert", "recipe", "pool", "pool_family", "draw", "method", "algorithm"),
    *("space", "axis", "duration", "multiple", "seed"),
    *("split", "domain", "benchmark", "task", "primary", "item", "stem", "score"),
]


def read(path: Path, base: str) -> pd.DataFrame:
    """The rows of samples.parquet that claims about a base rest on: primary metrics on the test split, no sweeps.

    Raises:
        ValueError: naming the columns that the file lacks, or one that holds NaN.
    """
    missing = sorted(set(_COLUMNS) - set(pq.read_schema(path).names))
    if missing:
        raise ValueError(f"{path}: columns missing: {', '.join(missing)}; rebuild it with collect_results")
    chosen = (column("base") == base) & (column("split") == "test") & column("primary") & column("axis").is_null()
    return tables.filled(pd.read_parquet(path, columns=_COLUMNS, filters=chosen), columns.SAMPLES, path)


def resampled(
    samples: pd.DataFrame,
    base: str,
    pool: str | None = None,
    weights: Mapping[str, str] | None = None,
    replicates: int = REPLICATES,
    refusals: tuple[str, ...] = (),
) -> Scores:
    """The scores of one base, with their bootstrap.

    A benchmark's score is the mean over its items, or over its tasks where ``weights`` says "tasks"; a domain's is the
    mean over its benchmarks. Of several seeds of training the mean is taken item by item, so that intervals hold the
    draw of test items and not that of seeds; best sets hold both, as those of the tables do.

    Args:
        samples: columns ``mergetime.results.columns.SAMPLES``, or those that :func:`read` gives.
        base: the base's id.
        pool: which pool of experts, where the study merges several at one duration.
        weights: "items" (default) or "tasks", by benchmark.
        replicates: number of replicates.
        refusals: the domains that are in no average, as :class:`mergetime.publishing.names.Names` has them.

    Raises:
        ValueError: in one line, if models were scored on different items or lack a seed, or there are several pools to
            choose from.
    """
    rows = _rows(samples, base, pool)
    benchmarks = {
        str(domain): {str(name): of_benchmark for name, of_benchmark in of_domain.groupby("benchmark", sort=False)}
        for domain, of_domain in rows.groupby("domain", sort=False)
    }
    matrices = {
        domain: {name: _matrix(of_benchmark, name) for name, of_benchmark in by_benchmark.items()}
        for domain, by_benchmark in benchmarks.items()
    }
    for domain, by_benchmark in matrices.items():
        if len({tuple(matrix.columns) for matrix in by_benchmark.values()}) > 1:
            raise ValueError(f"some models of {base} lack a benchmark of {domain}; evaluate them and collect again")
    seeds = sorted(rows["seed"].dropna().unique())
    if len(seeds) < 2:
        return bootstrap(matrices, base, weights, replicates, refusals)
    by_seed = {
        domain: np.mean(
            [
                _seed_means(benchmarks[domain][name], name, matrix.columns, _by_task(weights, name), seeds)
                for name, matrix in by_benchmark.items()
            ],
            axis=0,
        )
        for domain, by_benchmark in matrices.items()
    }
    return bootstrap(matrices, base, weights, replicates, refusals, by_seed)


def bootstrap(
    matrices: Mapping[str, Mapping[str, pd.DataFrame]],
    name: str,
    weights: Mapping[str, str] | None = None,
    replicates: int = REPLICATES,
    refusals: tuple[str, ...] = (),
    by_seed: Mapping[str, Reals] | None = None,
) -> Scores:
    """The bootstrap of scores by item.

    Args:
        matrices: by domain and benchmark: items (index: task, item, copy, stem) by subjects (columns: kind, expert,
            method, space, multiple; empty text where it has none), the same subjects for all benchmarks of a domain.
        name: seeds the draws, together with the benchmark's: a benchmark's draws depend on no other.
        weights: "items" (default) or "tasks", by benchmark.
        replicates: number of replicates.
        refusals: the domains that are in no average, as :class:`mergetime.publishing.names.Names` has them.
        by_seed: by domain, the mean scores with each seed of training, as shares [subjects, seeds]; None: of one seed.

    Raises:
        ValueError: in one line, if a benchmark, or a task that counts as much as others, has fewer than two items.
    """
    cells: list[Measured] = []
    drawn: list[Reals] = []
    estimates: dict[str, Estimates] = {}
    for domain, by_benchmark in matrices.items():
        cells += [Measured._make((*subject, domain)) for subject in next(iter(by_benchmark.values())).columns]
        by_task = [_by_task(weights, benchmark) for benchmark in by_benchmark]
        parts = [
            _resampled_means(matrix, f"{name} {benchmark}", equal, replicates)
            for (benchmark, matrix), equal in zip(by_benchmark.items(), by_task, strict=True)
        ]
        drawn.append(np.mean(parts, axis=0))
        estimates[domain] = average(
            [_estimated(matrix, equal) for matrix, equal in zip(by_benchmark.values(), by_task, strict=True)]
        )
    items = {
        domain: min(matrix.index.get_level_values("stem").nunique() for matrix in by_benchmark.values())
        for domain, by_benchmark in matrices.items()
    }
    by_seed = by_seed or {domain: of_domain.by_seed for domain, of_domain in estimates.items()}
    return Scores(
        cells,
        100 * np.concatenate([of_domain.values for of_domain in estimates.values()]),
        100 * np.concatenate(drawn, axis=1),
        100**2 * block_diag(*(of_domain.covariance for of_domain in estimates.values())),
        100 * np.concatenate([by_seed[domain] for domain in estimates]),
        {domain: of_domain.freedom for domain, of_domain in estimates.items()},
        items,
        refusals,
    )


def _rows(samples: pd.DataFrame, base: str, pool: str | None) -> pd.DataFrame:
    """The scores by item that claims are about: primary metrics on the test split, durations in multiples of T*.

    The points of sweeps are left out; the column ``method`` then holds families, as :func:`publishing.scores.families`
    tells them.
    """
    rows = samples[(samples["base"] == base) & (samples["split"] == "test") & samples["primary"].astype(bool)]
    rows = rows[rows["axis"].isna()]
    merged = rows["subject_kind"] == "merged"
    pools = sc.shown(rows[merged], pool)
    if pools["pool"].nunique() > 1:
        raise ValueError(
            f"base {base} has several pools ({', '.join(sorted(set(pools['pool'])))}); name one with --pool"
        )
    others = rows[~merged]
    if others["recipe"].nunique() > 1:
        # Of experts that were trained by several recipes, those that the pool is of.
        others = others[(others["subject_kind"] == "base") | others["recipe"].isin(pools["recipe"].dropna())]
    rows = pd.concat([others, pools])
    rows = rows[(rows["subject_kind"] == "base") | rows["multiple"].notna()]
    if rows.empty:
        raise ValueError(f"the samples hold no primary score of base {base} on the test split")
    family_of = sc.families(sc.methods(pools, Names()))
    filled = rows.assign(
        method=[family_of.get(key, "") for key in zip(rows["method"], rows["space"], strict=True)],
        expert=rows["expert"].fillna(""),
        space=rows["space"].fillna(""),
        multiple=rows["multiple"].where(rows["subject_kind"] != "base", 0.0),
    )
    # A benchmark may hold the same document twice: its n-th copy is an item of its own.
    return filled.assign(copy=filled.groupby(["subject", "benchmark", "task", "item"]).cumcount())


def _matrix(rows: pd.DataFrame, benchmark: str) -> pd.DataFrame:
    """Scores of one benchmark: items by subjects, means over seeds."""
    matrix = rows.pivot_table(index=_ITEM, columns=_SUBJECT, values="score", aggfunc="mean", sort=False)
    # A mean over the seeds that happen to have an item would be of other models than its neighbour.
    seeds = rows.groupby([*_SUBJECT, *_ITEM], sort=False)["score"].count()
    if matrix.isna().to_numpy().any() or (seeds.groupby(level=_SUBJECT).nunique() > 1).any():
        raise ValueError(f"models were scored on different items of {benchmark}; evaluate them again")
    return matrix


def _seed_means(rows: pd.DataFrame, benchmark: str, subjects: pd.Index, by_task: bool, seeds: list[float]) -> Reals:
    """The mean scores of one benchmark with each seed [subjects, seeds]; a base, which has none, has its one score."""
    keys = [*_SUBJECT, "seed"]
    seeded = rows.assign(seed=rows["seed"].fillna(_NO_SEED))
    means = seeded.groupby([*keys, *(["task"] if by_task else [])])["score"].mean().groupby(level=keys).mean()
    table = means.unstack("seed").reindex(subjects)
    without_seed = table.get(_NO_SEED, pd.Series(np.nan, index=subjects))
    table = table.reindex(columns=seeds).apply(lambda scores: scores.fillna(without_seed))
    lacking = table.isna().any(axis=1)
    if lacking.any():
        name = " ".join(f"{part:g}x" if isinstance(part, float) else part for part in lacking.idxmax() if part)
        raise ValueError(f"{name} lacks a seed of {benchmark} that others have; evaluate it and collect again")
    by_seed: Reals = table.to_numpy(dtype=float)
    return by_seed


def _by_task(weights: Mapping[str, str] | None, benchmark: str) -> bool:
    """Whether the tasks of a benchmark count the same, whatever their numbers of items."""
    return (weights or {}).get(benchmark) == "tasks"


def _resampled_means(matrix: pd.DataFrame, name: str, by_task: bool, replicates: int) -> Reals:
    """The mean scores of one benchmark on each replicate's draw of its items: [replicates, subjects]."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    scores, places = matrix.to_numpy(dtype=float), _places(matrix, "task")
    counts = _draws(generator, matrix, places, replicates)
    drawn: Reals = np.zeros((replicates, matrix.shape[1]))
    for place in places:
        share = 1 / len(places) if by_task else len(place) / len(matrix)
        drawn += share * _means(counts[:, place], scores[place])
    return drawn


def _estimated(matrix: pd.DataFrame, by_task: bool) -> Estimates:
    """The mean scores of one benchmark with their covariance, as tables have them."""
    stems = matrix.index.get_level_values("stem")
    return estimate(
        [str(place) for place in range(matrix.shape[1])],
        matrix.to_numpy(dtype=float).T[:, None, :],
        pd.factorize(matrix.index.get_level_values("task"))[0] if by_task else None,
        None if stems.is_unique else pd.factorize(stems)[0],
    )


def _places(matrix: pd.DataFrame, level: str) -> list[npt.NDArray[np.intp]]:
    """The rows of each value of an index level, in order of appearance."""
    return [np.asarray(rows) for rows in matrix.groupby(level=level, sort=False).indices.values()]


def _means(weights: Reals, scores: Reals) -> Reals:
    """Weighted mean scores of each replicate; where a tiny task has no weight at all, the mean of all stands in."""
    number = weights.sum(axis=1, keepdims=True)
    return np.asarray(np.where(number > 0, (weights @ scores) / np.maximum(number, 1), scores.mean(axis=0)))


def _draws(
    generator: np.random.Generator, matrix: pd.DataFrame, tasks: list[npt.NDArray[np.intp]], replicates: int
) -> Reals:
    """How often each item is in each replicate: stems are drawn, within tasks where no two tasks share one."""
    stems = matrix.index.get_level_values("stem").to_numpy()
    shared = sum(len(set(stems[task])) for task in tasks) > len(set(stems))
    counts: Reals = np.empty((replicates, len(matrix)))
    for place in [np.arange(len(matrix))] if shared else tasks:
        codes, distinct = pd.factorize(stems[place])
        counts[:, place] = _counts(generator, len(distinct), replicates)[:, codes]
    return counts


def _counts(generator: np.random.Generator, items: int, replicates: int) -> Reals:
    """How often each item is in each replicate's draw of ``items`` items with replacement."""
    draws = generator.integers(items, size=(replicates, items)) + items * np.arange(replicates)[:, None]
    return np.bincount(draws.ravel(), minlength=replicates * items).reshape(replicates, items).astype(float)
