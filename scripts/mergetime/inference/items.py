"""From samples.parquet to estimates: which items subjects share, and how benchmarks and domains are put together."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mergetime.inference.estimates import Codes, Estimates, average, estimate

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
        samples: columns ``mergetime.results.SAMPLES``; rows of one domain, and of one metric a benchmark.
        by: the column that tells the subjects apart, such as ``duration``.
        names: the subjects, in the order of the estimates.
        equal_tasks: benchmarks whose tasks count the same (``weights: tasks`` in the config).

    Raises:
        ValueError: in one line, if there are no samples, or the subjects and seeds were not scored on the same items.
    """
    groups = samples[samples[by].isin(list(names))].groupby(BENCHMARK, sort=True)
    parts = [_of_benchmark(rows, by, names, key[0] in equal_tasks) for key, rows in groups]
    if not parts:
        raise ValueError(f"no samples of {', '.join(map(str, names))}")
    return average(parts)


def paired_differences(samples: pd.DataFrame, first: str, second: str, equal_tasks: Sequence[str] = ()) -> pd.DataFrame:
    """One subject minus another, on the items that both answered, by benchmark, metric and split.

    Items that share a ``stem`` are one draw, as in :func:`estimates_of`.

    Args:
        samples: columns ``mergetime.results.SAMPLES``, with a ``domain``.
        first: a path in the column ``subject``.
        second: another.
        equal_tasks: as in :func:`estimates_of`.

    Returns:
        domain, benchmark, metric, split, value (share from -1 to 1), stderr, low and high (95 %), p_value (two-sided
        paired t), items. Not corrected for being many: see :func:`mergetime.inference.comparisons.holm`.

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
    for (domain, benchmark, metric, split), group in rows.groupby(["domain", *BENCHMARK], sort=False):
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
    keys = ["task", "item"] if "task" in rows else ["item"]
    # A document may stand twice in a data set: its first and second answers are joined in order.
    rows = rows.assign(seed=rows["seed"].fillna(-1))
    rows["copy"] = rows.groupby([by, "seed", *keys], sort=False).cumcount()
    table = rows.pivot(index=[*keys, "copy"], columns=[by, "seed"], values="score")
    seeds = sorted(set(rows["seed"]))
    wanted = pd.MultiIndex.from_product([names, seeds])
    table = table.reindex(columns=wanted)
    lacking = [name for name, seed in wanted if table[name, seed].isna().any()]
    if lacking:
        benchmark = rows["benchmark"].iloc[0]
        raise ValueError(
            f"{by} {lacking[0]} lacks items of {benchmark} that others were scored on; evaluate it and collect again"
        )
    scores = table.to_numpy().T.reshape(len(names), len(seeds), len(table))
    strata = _codes(table.index.get_level_values("task")) if equal_tasks and "task" in keys else None
    return estimate(names, scores, strata, _shared_stems(rows, [*keys, "copy"], table.index))


def _shared_stems(rows: pd.DataFrame, keys: list[str], items: pd.Index) -> Codes | None:
    """The stem of each item, as a code; None where no two share one."""
    if "stem" not in rows or rows["stem"].nunique() == len(items):
        return None
    return _codes(rows.drop_duplicates(keys).set_index(keys)["stem"].reindex(items))


def _codes(values: pd.Index | pd.Series) -> Codes:
    return np.asarray(pd.factorize(values)[0], dtype=np.int64)
