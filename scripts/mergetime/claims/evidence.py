"""What claims are judged on: scores by item, with their covariance and resampled, and the tidy files of analyses.

Where a best duration is concerned, claims rest on the same covariance of means as the tables of best durations
(:mod:`mergetime.uncertainty`); all else rests on a bootstrap, which is not right for maxima. It is paired: a replicate
draws items with replacement, within each task of each benchmark, and every model of the base is scored on the same
draw. So what is hard about an item cancels in differences between models. Items that share a stem, such as translations
of one question, are drawn together.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq
from pyarrow.compute import field as column
from scipy.linalg import block_diag

from mergetime.publishing import scores as sc
from mergetime.publishing.names import Names
from mergetime.uncertainty.estimates import Estimates, average, estimate

REPLICATES = 2000
Reals = npt.NDArray[np.float64]

_SUBJECT = ["subject_kind", "expert", "method", "space", "multiple"]
_ITEM = ["task", "item", "copy", "stem"]
_NO_SEED = -1
"""Stands for the seed of what is not trained."""
_COLUMNS = [
    *("base", "subject_kind", "subject", "expert", "recipe", "pool", "pool_family", "draw", "method", "algorithm"),
    *("space", "axis", "duration", "multiple", "seed"),
    *("split", "domain", "benchmark", "task", "primary", "item", "stem", "score"),
]


class NotTestableError(Exception):
    """The study has not measured what a claim is about; the text says what is missing, in one line."""


@dataclass(frozen=True)
class Draws:
    """A statistic: its value on the data, and on every replicate; ``items`` counts the stems of the smallest sample."""

    value: float
    replicates: Reals
    items: int


@dataclass(frozen=True)
class Estimate:
    """A statistic with its standard error in the unit of ``value``, Student's t with ``freedom`` degrees.

    ``least`` is the smallest value that it can have at all, ``remark`` what it rests on, where that must be said.
    """

    value: float
    stderr: float
    freedom: float
    least: float = -np.inf
    remark: str | None = None


@dataclass(frozen=True)
class Candidates:
    """A statistic of best durations: its value on the data, and those that cannot be told apart from it at 95 %."""

    value: float
    values: Reals


@dataclass(frozen=True)
class Limit:
    """The largest value that a statistic can take at all, given what it is compared with, and why."""

    value: float
    because: str


@dataclass(frozen=True)
class Bounds:
    """A statistic with its 95 % interval, and the largest value that it can take."""

    value: float
    low: float
    high: float
    limit: Limit | None = None


Result = Draws | Estimate | Bounds | Candidates
"""What a statistic gives."""


@dataclass(frozen=True)
class Curve:
    """Scores in percent against duration: on the data and on every replicate's draw.

    Attributes:
        multiples: the durations.
        point: scores on the data.
        drawn: scores on the replicates [replicates, durations].
        weights: what each score is the mean of: [durations, cells of :class:`Scores`].
        freedom: degrees of freedom of the scores' covariance.
        items: of the smallest sample.
    """

    multiples: Reals
    point: Reals
    drawn: Reals
    weights: Reals
    freedom: float
    items: int

    def at(self, multiple: float) -> "Curve":
        """The curve at one duration.

        Raises:
            NotTestableError: if the study has no such duration.
        """
        return self.of(np.isclose(self.multiples, multiple), f"{multiple:g}x")

    def within(self, shortest: float | None, longest: float | None) -> "Curve":
        """The durations from ``shortest`` to ``longest``; None: no bound."""
        name = f"{shortest or 0:g}x to {longest:g}x" if longest else f"{shortest or 0:g}x or longer"
        return self.of(self.between(shortest, longest), name)

    def between(self, shortest: float | None, longest: float | None) -> npt.NDArray[np.bool_]:
        """Which durations are from ``shortest`` to ``longest``; None: no bound."""
        low, high = shortest or 0.0, longest or np.inf
        chosen: npt.NDArray[np.bool_] = (self.multiples >= low - 1e-9) & (self.multiples <= high + 1e-9)
        return chosen

    def of(self, chosen: npt.NDArray[np.bool_], name: str) -> "Curve":
        """The chosen durations; ``name`` is for the message when there is none."""
        if not chosen.any():
            raise NotTestableError(f"the study keeps no duration of {name}")
        return replace(
            self,
            multiples=self.multiples[chosen],
            point=self.point[chosen],
            drawn=self.drawn[:, chosen],
            weights=self.weights[chosen],
        )


class Measured(NamedTuple):
    """What a column of scores is of; texts are empty where a model has none, a base's multiple is 0."""

    kind: str
    expert: str
    method: str
    space: str
    multiple: float
    domain: str


@dataclass(frozen=True)
class Scores:
    """The scores of one base in percent.

    Attributes:
        cells: what the columns of the arrays are of.
        point: scores on the data [cells].
        drawn: scores on the replicates [replicates, cells].
        covariance: of ``point`` over the drawing of items [cells, cells]; domains share no items.
        by_seed: scores with each seed of training [cells, seeds]; the same for all seeds where nothing is trained.
        freedom: its degrees of freedom, by domain.
        items: of the smallest benchmark, by domain.
        refusals: the domains that are in no average.
    """

    cells: list[Measured]
    point: Reals
    drawn: Reals
    covariance: Reals
    by_seed: Reals
    freedom: Mapping[str, float]
    items: Mapping[str, int]
    refusals: tuple[str, ...] = ()

    @cached_property
    def spaces(self) -> Mapping[str, list[str]]:
        """The spaces that each method merges in."""
        spaces: dict[str, list[str]] = {}
        for method, space in dict.fromkeys((cell.method, cell.space) for cell in self.cells if cell.kind == "merged"):
            spaces.setdefault(method, []).append(space)
        return spaces

    @cached_property
    def experts_trained(self) -> list[str]:
        """The experts that were kept at multiples of their T*, which imported ones are not."""
        return list(dict.fromkeys(cell.expert for cell in self.cells if cell.kind == "expert"))

    @cached_property
    def accuracy_domains(self) -> list[str]:
        """The domains that averages run over: all that were measured but those measured by refusals."""
        domains = [
            domain for domain in dict.fromkeys(cell.domain for cell in self.cells) if domain not in self.refusals
        ]
        if not domains:
            raise NotTestableError(f"no domain but {' and '.join(self.refusals) or 'none'} is measured")
        return domains

    def merged(self, method: str, space: str | None, domain: str) -> Curve:
        """Merges of one method against duration."""
        if method not in self.spaces:
            raise NotTestableError(f"the study does not merge with {method}")
        if space not in self.spaces[method]:
            raise NotTestableError(f"{method} is not merged in the space of what it is compared with")
        chosen = {("merged", "", method, space)}
        return self._average(lambda cell: cell[:4] in chosen, domain, f"merges with {method}")

    def experts(self, domain: str = sc.AVERAGE) -> Curve:
        """Experts against duration, each on the domain that it was trained on."""
        return self._average(lambda cell: cell.kind == "expert" and cell.expert == cell.domain, domain, "experts")

    def expert(self, name: str, domain: str = sc.AVERAGE) -> Curve:
        """One expert against duration, on all domains."""
        return self._average(lambda cell: cell.kind == "expert" and cell.expert == name, domain, f"expert {name}")

    def base(self, domain: str = sc.AVERAGE) -> Curve:
        """The untrained base; its only duration is 0."""
        return self._average(lambda cell: cell.kind == "base", domain, "the base")

    def _average(self, chosen: Callable[[Measured], bool], domain: str, what: str) -> Curve:
        """The chosen subjects' mean over domains, at the durations where all of the domains are measured."""
        domains = self.accuracy_domains if domain == sc.AVERAGE else [domain]
        places = {(cell.multiple, cell.domain): place for place, cell in enumerate(self.cells) if chosen(cell)}
        unmeasured = [name for name in domains if name not in {measured for _, measured in places}]
        if unmeasured:
            raise NotTestableError(f"the study has no score of {what} in {', '.join(unmeasured)}")
        durations = sorted({multiple for multiple, _ in places})
        multiples = [multiple for multiple in durations if all((multiple, other) in places for other in domains)]
        if not multiples:
            raise NotTestableError(f"{what} have no duration with a score in all of {', '.join(domains)}")
        index = np.array([[places[multiple, other] for other in domains] for multiple in multiples])
        weights = np.zeros((len(multiples), len(self.cells)))
        np.put_along_axis(weights, index, 1 / len(domains), axis=1)
        return Curve(
            np.array(multiples),
            self.point[index].mean(axis=1),
            self.drawn[:, index].mean(axis=2),
            weights,
            min(self.freedom[name] for name in domains),
            min(self.items[name] for name in domains),
        )


@dataclass(frozen=True)
class Evidence:
    """All that a study offers: scores by base (smallest base first) and the tidy files of its analyses, by name."""

    scores: Mapping[str, Scores]
    analyses: Mapping[str, pd.DataFrame]

    def analysis(self, name: str, base: str) -> pd.DataFrame:
        """The rows of an analysis for one base, at durations that are multiples of T*.

        Raises:
            NotTestableError: if the study does not have it.
        """
        frame = self.analyses.get(name)
        if frame is None:
            raise NotTestableError(f"the study has no analysis/{name}.parquet")
        rows = frame[(frame["base"] == base) & frame["multiple"].notna()]
        if rows.empty:
            raise NotTestableError(f"analysis/{name}.parquet has no duration of {base} in multiples of T*")
        return rows


def read(path: Path, base: str) -> pd.DataFrame:
    """The rows of samples.parquet that claims about a base rest on: primary metrics on the test split, no sweeps.

    Raises:
        ValueError: naming the columns that the file lacks.
    """
    missing = sorted(set(_COLUMNS) - set(pq.read_schema(path).names))
    if missing:
        raise ValueError(f"{path}: columns missing: {', '.join(missing)}; rebuild it with collect_results")
    chosen = (column("base") == base) & (column("split") == "test") & column("primary") & column("axis").is_null()
    return pd.read_parquet(path, columns=_COLUMNS, filters=chosen)


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
    if matrix.isna().to_numpy().any():
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
