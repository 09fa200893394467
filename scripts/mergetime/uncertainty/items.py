"""From samples.parquet to estimates: which items subjects share, and how benchmarks and domains are put together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mergetime.uncertainty.estimates import ZERO, Codes, Estimates, Vector, average, estimate

BENCHMARK = ["benchmark", "metric", "split"]
"""Items are joined within these; beside them by task, where samples name one, and by the hash of the document."""
_READ = [*BENCHMARK, "task", "seed", "item", "stem", "score"]
"""The columns that scores by item are made of, beside the one that tells the subjects apart."""


@dataclass(frozen=True)
class ItemScores:
    """What several subjects scored on the items of one benchmark.

    Attributes:
        scores: subjects x seeds x items.
        strata: of each item, a code of its task, where tasks count the same.
        clusters: of each item, a code of what it was translated from; None where each is a draw of its own.
    """

    scores: Vector
    strata: Codes | None
    clusters: Codes | None

    def discordant(self) -> Codes:
        """How many draws (items, or clusters of them) two subjects score differently on: [subjects, subjects]."""
        by_item = self.scores.mean(axis=1)
        differ = np.abs(by_item[:, None] - by_item[None]) > ZERO
        if self.clusters is not None:
            order = np.argsort(self.clusters, kind="stable")
            starts = np.flatnonzero(np.diff(self.clusters[order], prepend=-1))
            differ = np.logical_or.reduceat(differ[:, :, order], starts, axis=2)
        counts: Codes = differ.sum(axis=2)
        return counts


def estimates_of(
    samples: pd.DataFrame,
    by: str,
    names: Sequence[str],
    equal_tasks: Sequence[str] = (),
) -> Estimates:
    """The mean scores of subjects on one domain: the mean over its benchmarks, each over its items.

    Arguments and errors as in :func:`scores_by_item`.
    """
    return estimated(names, scores_by_item(samples, by, names, equal_tasks))


def estimated(names: Sequence[str], benchmarks: Sequence[ItemScores]) -> Estimates:
    """The mean over benchmarks of the subjects' mean scores."""
    return average([estimate(names, part.scores, part.strata, part.clusters) for part in benchmarks])


def scores_by_item(
    samples: pd.DataFrame,
    by: str,
    names: Sequence[str],
    equal_tasks: Sequence[str] = (),
) -> list[ItemScores]:
    """The scores of subjects on each benchmark of one domain.

    Items of a benchmark that share a ``stem`` are one draw; without that column each item is.

    Args:
        samples: columns ``results.columns.SAMPLES``; rows of one domain, and of one metric per benchmark. Texts may
            be categories, with which it is faster, if these are in alphabetical order.
        by: the column that tells the subjects apart, such as ``duration``.
        names: the subjects, in the order of the scores.
        equal_tasks: benchmarks whose tasks count the same (``weights: tasks`` in the config).

    Raises:
        ValueError: in one line, if there are no samples, or the subjects and seeds were not scored on the same items.
    """
    # Rows are copied more than once from here on: a study of the paper's size has a million of them.
    columns = [by, *(name for name in _READ if name in samples and name != by)]
    known = _places(samples[by], names) >= 0
    chosen = samples[columns] if known.all() else samples.loc[known, columns]
    if chosen.empty:
        raise ValueError(f"no samples of {', '.join(map(str, names))}")
    return [_of_benchmark(rows, by, names, rows["benchmark"].iloc[0] in equal_tasks) for rows in _by_benchmark(chosen)]


def _by_benchmark(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each benchmark; most domains have a single one, which takes no grouping."""
    if all(_constant(rows[name]) for name in BENCHMARK):
        return [rows]
    return [of_benchmark for _, of_benchmark in rows.groupby(BENCHMARK, sort=True, observed=True)]


def _of_benchmark(rows: pd.DataFrame, by: str, names: Sequence[str], equal_tasks: bool) -> ItemScores:
    seed, seeds = pd.factorize(rows["seed"].fillna(-1), sort=True)
    subject = _places(rows[by], names) * len(seeds) + seed
    first, item = _items(rows, subject)
    scores = np.full((len(names) * len(seeds), len(first)), np.nan)
    scores[subject, item] = rows["score"]
    lacking = np.isnan(scores).any(axis=1)
    if lacking.any():
        benchmark, name = rows["benchmark"].iloc[0], names[int(lacking.argmax()) // len(seeds)]
        raise ValueError(
            f"{by} {name} lacks items of {benchmark} that others were scored on; evaluate it and collect again"
        )
    by_item = rows.iloc[first]
    strata = _codes(by_item["task"]) if equal_tasks and "task" in rows else None
    return ItemScores(scores.reshape(len(names), len(seeds), -1), strata, _shared_stems(by_item))


def _items(rows: pd.DataFrame, subject: Codes) -> tuple[Codes, Codes]:
    """The items that rows are about, in the order of their tasks and hashes.

    Args:
        rows: of one benchmark.
        subject: of each row, a code of its subject and seed.

    Returns:
        The first row of each item [items], and the item of each row [rows].
    """
    item, hashes = pd.factorize(rows["item"], sort=True)
    if "task" in rows:
        item += len(hashes) * pd.factorize(rows["task"], sort=True)[0]
    # A document may stand twice in a data set: its first and second answers are joined in order.
    answer = pd.Series(subject * (item.max() + 1) + item)
    copy = (
        answer.groupby(answer, sort=False).cumcount().to_numpy() if answer.duplicated().any() else np.zeros_like(item)
    )
    _, first, of_row = np.unique(item * (copy.max() + 1) + copy, return_index=True, return_inverse=True)
    return first, of_row


def _shared_stems(by_item: pd.DataFrame) -> Codes | None:
    """The stem of each item, as a code; None where no two share one."""
    if "stem" not in by_item or by_item["stem"].is_unique:
        return None
    return _codes(by_item["stem"])


def _constant(values: pd.Series) -> bool:
    """Whether all values are the same; of categories their codes tell, which is faster."""
    plain = (values.cat.codes if isinstance(values.dtype, pd.CategoricalDtype) else values).to_numpy()
    return bool((plain == plain[0]).all())


def _places(values: pd.Series, names: Sequence[str]) -> Codes:
    """The place of each value among ``names``, -1 where it is none of them."""
    index = pd.Index(names)
    if not isinstance(values.dtype, pd.CategoricalDtype):
        return np.asarray(index.get_indexer(pd.Index(values)), dtype=np.int64)
    # Few categories, many rows. The code of what is missing, -1, takes the place that is added.
    of_category = np.append(index.get_indexer(values.cat.categories), -1)
    return np.asarray(of_category[values.cat.codes], dtype=np.int64)


def _codes(values: pd.Series) -> Codes:
    return np.asarray(pd.factorize(values)[0], dtype=np.int64)
