"""A study's own numbers beside the published ones, cell by cell.

A difference counts only beyond what two test sets of finite size explain:

    tolerance = 1.96 sqrt(ours_stderr^2 + published_stderr^2)        percentage points

with our standard error from results.parquet and the paper's from the binomial, 100 sqrt(p (1 - p) / n), over the n
items of its benchmark (a mean over k domains: sqrt(sum of squares) / k). Both sides answer the same questions, so
their errors are correlated in fact; without the paper's item scores that cannot be used, and the tolerance is
the cautious one. It holds no spread over training seeds either: the paper has one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from mergetime.config.study import Study
from mergetime.core.duration_ids import duration_id
from mergetime.papers.comparison import COLUMNS, DIFFERS, NOT_COMPARABLE, SAME
from mergetime.papers.duration.names import NAMES, SAFETY
from mergetime.papers.duration.published.numbers import (
    AT_T_STAR,
    AVERAGE,
    BASE,
    BEST,
    EXPERT,
    MERGED,
    Published,
    load,
    records,
)
from mergetime.publishing import scores as sc
from mergetime.publishing.best import best_per_domain

Z = 1.96
"""Standard errors to either side in a 95 % interval."""
UNKNOWN_ITEMS = "the paper's number of items is unknown; taken to be ours"


@dataclass(frozen=True)
class PrintedCell:
    """One printed cell."""

    table: str
    model: str
    subject: str
    method: str | None
    selection: str | None
    domain: str
    value: float | None
    unit: Literal["percent", "multiple"] = "percent"


@dataclass(frozen=True)
class Score:
    """One of our scores, and its standard error over items, both in percent."""

    value: float
    stderr: float


@dataclass(frozen=True)
class Ours:
    """What a study measured on one base, by (subject, method, space, selection, domain); best as in tables 3-5.

    Methods are called by their algorithms, as the paper's are; ``settings`` has the ids of several methods of one
    algorithm in one space, none of which has the algorithm's id, so that it is open which of them is the paper's.
    """

    base: str
    scores: Mapping[tuple[str, str | None, str | None, str | None, str], Score]
    spaces: Mapping[str, list[str]]
    settings: Mapping[str, list[str]]
    items: Mapping[str, int]
    durations: list[float]


def compared(folder: Path, study: Study, results: pd.DataFrame, pool: str | None) -> pd.DataFrame:
    """:func:`comparison` with the tables in the paper's folder."""
    return comparison(load(folder), study, results, pool)


def comparison(published: Published, study: Study, results: pd.DataFrame, pool: str | None = None) -> pd.DataFrame:
    """Every printed score beside ours: columns ``comparison.COLUMNS``, a row per cell and space.

    Where nothing of the study matches the paper, every row is not_comparable and says why.

    Args:
        published: the paper's tables.
        study: the study, for the repositories behind its ids.
        results: columns ``mergetime.results.columns.RESULTS``.
        pool: which pool, where the study merges several at one duration.

    Raises:
        ValueError: in one line, if scores of a matching base are incomplete.
    """
    rows: list[dict[str, object]] = []
    measured: dict[str, Ours] = {}
    for printed in cells(published):
        base, reason = matching_base(published, study, printed.model)
        reason = reason or foreign_benchmark(published, study, printed.domain)
        if printed.value is None:
            reason = "the paper prints no number here"
        if base is None or reason:
            rows.append(_row(printed, base, None, reason=reason))
            continue
        if base not in measured:
            measured[base] = ours_on(results, base, pool, published.paper.accuracy_domains)
        rows += _beside(printed, measured[base], published)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def cells(published: Published) -> Iterator[PrintedCell]:
    """Every printed number of tables 2 to 5 and 7 to 9 (table 6 follows from the latter)."""
    for row in records(published.refusals):
        yield PrintedCell("2", row.model, MERGED, row.method, duration_id(row.duration), SAFETY, row.refusal_rate_pct)
    for row in records(published.accuracy):
        method, selection, value = (
            None if pd.isna(entry) else entry for entry in (row.method, row.selection, row.accuracy_pct)
        )
        yield PrintedCell(str(row.table), row.model, row.subject, method, selection, row.domain, value)
    for row in records(published.optima):
        yield PrintedCell(
            str(row.table), row.model, MERGED, row.method, "optimum", row.domain, row.duration, "multiple"
        )


def matching_base(published: Published, study: Study, model: str) -> tuple[str | None, str | None]:
    """The base of the study that stands for a model of the paper, or None and why there is none."""
    if study.hub.folder:
        return None, "this study's models come from a folder, not from the hub"
    for hub_id in published.paper.models[model]:
        for name, base in study.bases.items():
            if base.model == hub_id:
                return name, None
    return None, f"no base of this study is {published.paper.models[model][0]}"


def foreign_benchmark(published: Published, study: Study, domain: str) -> str | None:
    """Why our scores of a domain are not on the paper's benchmark; None if they are.

    An average is comparable where each of its domains is.
    """
    for measured in published.paper.accuracy_domains if domain == AVERAGE else [domain]:
        benchmark = published.paper.benchmarks[measured]
        names = study.suites.groups.get("test", {}).get(measured, [])
        if not names:
            return f"this study has no test benchmark for {measured}"
        for dataset in (study.benchmarks[name].dataset for name in names):
            if dataset != benchmark.dataset:
                return f"{measured} is measured on {dataset} here, on {benchmark.dataset} in the paper"
    return None


def ours_on(results: pd.DataFrame, base: str, pool: str | None, accuracy: list[str]) -> Ours:
    """What the results hold of one base, means over seeds."""
    rows = sc.test_rows(results)
    rows = rows[rows["base"] == base]
    scores = sc.domain_scores(rows)
    merged = sc.merged_scores(scores, base, pool)
    score_of: dict[tuple[str, str | None, str | None, str | None, str], Score] = {}
    untrained = sc.with_average(sc.base_scores(scores, base), accuracy)
    experts = sc.at_t_star(sc.own_expert_scores(scores, base, pool))
    algorithms = sc.methods(merged, NAMES)
    family_of = sc.families(algorithms)
    for row in records(sc.over_seeds(untrained)):
        score_of[BASE, None, None, None, row.domain] = Score(row.value, row.stderr)
    for row in records(sc.over_seeds(sc.with_average(experts, accuracy))):
        score_of[EXPERT, None, None, AT_T_STAR, row.domain] = Score(row.value, row.stderr)
    every = pd.concat([sc.with_average(merged, accuracy), merged[merged["domain"] == SAFETY]])
    for row in records(sc.over_seeds(every)):
        key = (MERGED, family_of[row.method, row.space], row.space)
        score = Score(row.value, row.stderr)
        score_of[*key, row.duration, row.domain] = score
        if row.multiple == sc.T_STAR:
            score_of[*key, AT_T_STAR, row.domain] = score
    for row in records(best_per_domain(merged, accuracy)):
        score_of[MERGED, family_of[row.method, row.space], row.space, BEST, row.domain] = Score(row.value, row.stderr)
    spaces: dict[str, list[str]] = {}
    settings: dict[str, list[str]] = {}
    for (method, space), algorithm in algorithms.items():
        if family_of[method, space] == algorithm:
            spaces.setdefault(algorithm, []).append(space)
        else:
            settings.setdefault(algorithm, []).append(method)
    items = {str(domain): int(count) for domain, count in rows.groupby("domain")["items"].max().items()}
    durations = sorted(float(multiple) for multiple in merged["multiple"].dropna().unique())
    return Ours(base, score_of, spaces, settings, items, durations)


def published_stderr(published: Published, ours: Ours, printed: PrintedCell) -> tuple[float, str | None]:
    """The binomial standard error of a printed share, in percentage points, and what it assumes.

    An average's is sqrt(sum of squares) / k over its k cells, each taken at the average's own share: sqrt(p (1 - p))
    changes little between 20 and 80 %, where nearly all cells are.
    """
    domains = published.paper.accuracy_domains if printed.domain == AVERAGE else [printed.domain]
    assert printed.value is not None
    share = printed.value / 100
    known = [published.paper.benchmarks[domain].items for domain in domains]
    items = [count or ours.items[domain] for count, domain in zip(known, domains, strict=True)]
    variances = [share * (1 - share) / count for count in items]
    return 100 * float(np.sqrt(sum(variances))) / len(domains), None if all(known) else UNKNOWN_ITEMS


def _beside(printed: PrintedCell, ours: Ours, published: Published) -> list[dict[str, object]]:
    """The cell beside ours, once for each space that the study merges the method in."""
    spaces: list[str | None] = list(ours.spaces.get(printed.method, [])) if printed.method else [None]
    if not spaces:
        several = ", ".join(ours.settings.get(str(printed.method), []))
        reason = f"this study does not merge with {printed.method}"
        if several:
            reason = f"this study merges with {printed.method} as {several}; give the paper's the id {printed.method}"
        return [_row(printed, ours.base, None, reason=reason)]
    compare = _optimum if printed.unit == "multiple" else _score
    return [compare(printed, ours, space, published) for space in spaces]


def _score(printed: PrintedCell, ours: Ours, space: str | None, published: Published) -> dict[str, object]:
    if printed.selection == BEST and ours.durations != published.paper.durations:
        return _row(printed, ours.base, space, reason=_other_durations(ours))
    score = ours.scores.get((printed.subject, printed.method, space, printed.selection, printed.domain))
    if score is None:
        what = printed.selection or printed.subject
        return _row(printed, ours.base, space, reason=f"this study has no score of {printed.domain} at {what}")
    assert printed.value is not None
    published_error, note = published_stderr(published, ours, printed)
    tolerance = Z * float(np.hypot(score.stderr, published_error))
    difference = score.value - printed.value
    verdict = SAME if abs(difference) <= tolerance else DIFFERS
    return _row(printed, ours.base, space, score.value, difference, tolerance, verdict, note)


def _optimum(printed: PrintedCell, ours: Ours, space: str | None, published: Published) -> dict[str, object]:
    """The optimal duration: theirs is as good as ours where our score there is within the tolerance of our best."""
    if ours.durations != published.paper.durations:
        return _row(printed, ours.base, space, reason=_other_durations(ours))
    keys = {
        duration: (printed.subject, printed.method, space, duration_id(duration), printed.domain)
        for duration in ours.durations
    }
    known = {duration: ours.scores[key] for duration, key in keys.items() if key in ours.scores}
    if len(known) < len(keys):
        return _row(printed, ours.base, space, reason=f"this study lacks {printed.domain} at some duration")
    best = max(known, key=lambda duration: (round(known[duration].value, 9), -duration))
    assert printed.value is not None
    there = known[printed.value]
    difference = there.value - known[best].value
    tolerance = Z * float(np.hypot(there.stderr, known[best].stderr))
    verdict = SAME if -difference <= tolerance else DIFFERS
    return _row(printed, ours.base, space, best, difference, tolerance, verdict)


def _other_durations(ours: Ours) -> str:
    return f"the best is over other durations here: {', '.join(map(duration_id, ours.durations))}"


def _row(
    printed: PrintedCell,
    base: str | None,
    space: str | None,
    value: float | None = None,
    difference: float | None = None,
    tolerance: float | None = None,
    verdict: str = NOT_COMPARABLE,
    reason: str | None = None,
) -> dict[str, object]:
    return {
        "table": printed.table,
        "model": printed.model,
        "base": base,
        "subject": printed.subject,
        "method": printed.method,
        "space": space,
        "selection": printed.selection,
        "domain": printed.domain,
        "unit": printed.unit,
        "published": printed.value,
        "ours": value,
        "difference": difference,
        "tolerance": tolerance,
        "verdict": verdict,
        "reason": reason,
    }
