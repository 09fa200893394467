"""From samples.parquet to estimates: which items subjects share, and how benchmarks and domains are put together."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mergetime.uncertainty.estimates import Codes, Estimates, average, estimate

BENCHMARK = ["benchmark", "metric", "split"]
"""Items are joined within these; beside them by task, where samples name one, and by the hash of the document."""


def estimates_of(
    samples: pd.DataFrame,
    by: str,
    names: Sequence[str],
    equal_tasks: Sequence[str] = (),
) -> Estimates:
    """The mean scores of subjects on one domain: the mean over its benchmarks, each over its items.

    Items of a benchmark that share a ``stem`` are one draw; without that column each item is.

    Args:
        samples: columns ``results.columns.SAMPLES``; rows of one domain, and of one metric a benchmark. Texts may be
            categories, with which it is faster, if these are in alphabetical order.
        by: the column that tells the subjects apart, such as ``duration``.
        names: the subjects, in the order of the estimates.
        equal_tasks: benchmarks whose tasks count the same (``weights: tasks`` in the config).

    Raises:
        ValueError: in one line, if there are no samples, or the subjects and seeds were not scored on the same items.
    """
    groups = samples[samples[by].isin(list(names))].groupby(BENCHMARK, sort=True, observed=True)
    parts = [_of_benchmark(rows, by, names, key[0] in equal_tasks) for key, rows in groups]
    if not parts:
        raise ValueError(f"no samples of {', '.join(map(str, names))}")
    return average(parts)


def paired_differences(samples: pd.DataFrame, first: str, second: str, equal_tasks: Sequence[str] = ()) -> pd.DataFrame:
    """One subject minus another, on the items that both answered, by benchmark, metric and split.

    Items that share a ``stem`` are one draw, as in :func:`estimates_of`.

    Args:
        samples: columns ``mergetime.results.columns.SAMPLES``, with a ``domain``.
        first: a path in the column ``subject``.
        second: another.
        equal_tasks: as in :func:`estimates_of`.

    Returns:
        domain, benchmark, metric, split, value (share from -1 to 1), stderr, low and high (95 %), p_value (two-sided
        paired t), items. Not corrected for being many: see :func:`mergetime.uncertainty.comparisons.holm`.

    Raises:
        ValueError: in one line, if a subject is unknown or they were not scored on the same items.
    """
    known = set(samples["subject"])
    for name in (first, second):
        if name not in known:
            raise ValueError(f"no samples of subject {name}")
    # One subject is one seed: two subjects may differ in theirs.
    rows = samples[samples["subject"].isin([first, second])].assign(seed=0)
    found = []
    for (domain, benchmark, metric, split), group in rows.groupby(["domain", *BENCHMARK], sort=False, observed=True):
        estimates = _of_benchmark(group, "subject", (first, second), benchmark in equal_tasks)
        difference = estimates.difference(first, second)
        low, high = difference.interval()
        found.append(
            {
                "domain": domain,
                "benchmark": benchmark,
                "metric": metric,
                "split": split,
                "value": difference.value,
                "stderr": difference.stderr,
                "low": low,
                "high": high,
                "p_value": difference.p_value,
                "items": len(group) // 2,
            }
        )
    return pd.DataFrame(found)


def _of_benchmark(rows: pd.DataFrame, by: str, names: Sequence[str], equal_tasks: bool) -> Estimates:
    seed, seeds = pd.factorize(rows["seed"].fillna(-1), sort=True)
    subject = pd.Index(names).get_indexer(pd.Index(rows[by])) * len(seeds) + seed
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
    return estimate(names, scores.reshape(len(names), len(seeds), -1), strata, _shared_stems(by_item))


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
    copy = pd.Series(item).groupby([subject, item], sort=False).cumcount().to_numpy()
    _, first, of_row = np.unique(item * (copy.max() + 1) + copy, return_index=True, return_inverse=True)
    return first, of_row


def _shared_stems(by_item: pd.DataFrame) -> Codes | None:
    """The stem of each item, as a code; None where no two share one."""
    if "stem" not in by_item or by_item["stem"].is_unique:
        return None
    return _codes(by_item["stem"])


def _codes(values: pd.Series) -> Codes:
    return np.asarray(pd.factorize(values)[0], dtype=np.int64)
