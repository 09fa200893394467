"""A study's own numbers beside the published ones, cell by cell.

A difference of scores counts only beyond what two test sets of finite size explain:

    tolerance = 1.96 sqrt(ours_stderr^2 + published_stderr^2)        percentage points

with our standard error from results.parquet and the paper's 100 sqrt(d p (1 - p) / n), over the n items of its
benchmark, where d is the design effect of our own scores on it: where translations of one question stand or fall
together here, they do so there. Our error is at least the one that the score of both sides' items together would have:
0 of 100 is known no better than 2 of 100. An average and its errors are made of its row's cells: sqrt(sum of squares) /
k over k of them. Both sides answer the same questions, so their errors are correlated in fact; without the paper's item
scores that cannot be used, and the tolerance is the cautious one. It holds no spread over training seeds either: the
paper has one.

The paper's optimal duration is the same as ours exactly if it is in our best set: two of our own scores on the same
items are compared there, and how well these tell durations apart is known.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
    Setting,
    groups,
    load,
    records,
)
from mergetime.publishing import scores as sc
from mergetime.publishing.best import best_per_domain
from mergetime.publishing.inputs import BenchmarkFacts, Inputs
from mergetime.publishing.sets import described, optimal_durations
from mergetime.uncertainty.proportions import design_effect

Z = 1.96
"""Standard errors to either side in a 95 % interval."""
UNKNOWN_ITEMS = "the paper's number of items is unknown; taken to be ours"


@dataclass(frozen=True)
class PrintedCell:
    """One printed cell; ``parts`` are the scores that it is the mean of, by domain: its own, or an average's cells."""

    table: str
    model: str
    subject: str
    method: str | None
    selection: str | None
    domain: str
    value: float | None
    parts: Mapping[str, float]
    unit: Literal["percent", "multiple"] = "percent"


@dataclass(frozen=True)
class Score:
    """One of our scores, and its standard error over items, both in percent."""

    value: float
    stderr: float


@dataclass(frozen=True)
class BestDuration:
    """The best duration of a method on a domain, as the tables of best durations have it.

    ``multiple`` is null where several durations are best, ``score`` the highest in percent, ``best_set`` holds ids, and
    ``described`` says in words what is best.
    """

    multiple: float | None
    score: float
    best_set: Sequence[str]
    described: str


@dataclass(frozen=True)
class Ours:
    """What a study measured on one base, by (subject, method, space, selection, domain); best as in tables 3-5.

    ``optima`` are by (method, space, domain), ``items`` and the scores' ``design_effects`` by domain. Methods are named
    by their algorithms, as the paper's are; ``settings`` has the ids of several methods of one algorithm in one space,
    none of which has the algorithm's id, so that it is open which of them is the paper's.
    """

    base: str
    scores: Mapping[tuple[str, str | None, str | None, str | None, str], Score]
    spaces: Mapping[str, list[str]]
    settings: Mapping[str, list[str]]
    items: Mapping[str, int]
    design_effects: Mapping[str, float]
    optima: Mapping[tuple[str, str, str], BestDuration]
    durations: list[float]


def compared(folder: Path, study: Study, inputs: Inputs) -> pd.DataFrame:
    """:func:`comparison` with the tables in the paper's folder."""
    return comparison(load(folder), study, inputs)


def comparison(published: Published, study: Study, inputs: Inputs) -> pd.DataFrame:
    """Every printed score beside ours: columns ``comparison.COLUMNS``, a row per cell and space.

    Where nothing of the study matches the paper, every row is not_comparable and says why.

    Args:
        published: the paper's tables.
        study: the study, for the repositories behind its ids.
        inputs: results and samples, and which pool, where the study merges several at one duration.

    Raises:
        ValueError: in one line, if scores or samples of a matching base are incomplete.
    """
    facts = {
        name: BenchmarkFacts(benchmark.chance, benchmark.weights == "tasks")
        for name, benchmark in study.benchmarks.items()
    }
    inputs = replace(inputs, benchmarks=facts)
    rows: list[dict[str, object]] = []
    measured: dict[str, Ours] = {}
    for printed in cells(published):
        base, reason = matching_base(published, study, printed.model)
        reason = reason or foreign_benchmark(published, study, list(printed.parts))
        if printed.value is None:
            reason = "the paper prints no number here"
        if base is None or reason:
            rows.append(_row(printed, base, None, reason=reason))
            continue
        if base not in measured:
            measured[base] = ours_on(inputs, base, published.paper)
        rows += _beside(printed, measured[base], published)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def cells(published: Published) -> Iterator[PrintedCell]:
    """Every printed number of tables 2 to 5 and 7 to 9 (table 6 follows from the latter)."""
    for row in records(published.refusals):
        percent = row.refusal_rate_pct
        duration, parts = duration_id(row.duration), {SAFETY: percent}
        yield PrintedCell("2", row.model, MERGED, row.method, duration, SAFETY, percent, parts)
    for name, of_row in groups(published.accuracy, ["table", "model", "subject", "method", "selection"]):
        table, model, subject = map(str, name[:3])
        method, selection = (None if pd.isna(entry) else str(entry) for entry in name[3:])
        printed = dict(zip(of_row["domain"], of_row["accuracy_pct"], strict=True))
        known = {domain: value for domain, value in printed.items() if domain != AVERAGE and not pd.isna(value)}
        for domain, number in printed.items():
            parts = known if domain == AVERAGE else {domain: number}
            percent = None if pd.isna(number) else float(number)
            yield PrintedCell(table, model, subject, method, selection, domain, percent, parts)
    for row in records(published.optima):
        of, parts = (str(row.table), row.model, MERGED, row.method), {row.domain: row.duration}
        yield PrintedCell(*of, "optimum", row.domain, row.duration, parts, "multiple")


def matching_base(published: Published, study: Study, model: str) -> tuple[str | None, str | None]:
    """The base of the study that stands for a model of the paper, or None and why there is none."""
    if study.hub.folder:
        return None, "this study's models come from a folder, not from the hub"
    for hub_id in published.paper.models[model]:
        for name, base in study.bases.items():
            if base.model == hub_id:
                return name, None
    return None, f"no base of this study is {published.paper.models[model][0]}"


def foreign_benchmark(published: Published, study: Study, domains: Sequence[str]) -> str | None:
    """Why our scores of a cell's domains are not on the paper's benchmarks; None if they are."""
    for measured in domains:
        benchmark = published.paper.benchmarks[measured]
        names = study.suites.groups.get("test", {}).get(measured, [])
        if not names:
            return f"this study has no test benchmark for {measured}"
        for dataset in (study.benchmarks[name].dataset for name in names):
            if dataset != benchmark.dataset:
                return f"{measured} is measured on {dataset} here, on {benchmark.dataset} in the paper"
    return None


def ours_on(inputs: Inputs, base: str, paper: Setting) -> Ours:
    """What the results and samples hold of one base, means over seeds."""
    rows = sc.test_rows(inputs.results)
    rows = rows[rows["base"] == base]
    scores = sc.domain_scores(rows)
    merged = sc.merged_scores(scores, base, inputs.pool)
    score_of: dict[tuple[str, str | None, str | None, str | None, str], Score] = {}
    experts = sc.at_t_star(sc.own_expert_scores(scores, base, inputs.pool))
    algorithms = sc.methods(merged, NAMES)
    family_of = sc.families(algorithms)
    for row in records(sc.over_seeds(sc.base_scores(scores, base))):
        score_of[BASE, None, None, None, row.domain] = Score(row.value, row.stderr)
    for row in records(sc.over_seeds(experts)):
        score_of[EXPERT, None, None, AT_T_STAR, row.domain] = Score(row.value, row.stderr)
    for row in records(sc.over_seeds(merged)):
        key = (MERGED, family_of[row.method, row.space], row.space)
        score = Score(row.value, row.stderr)
        score_of[*key, row.duration, row.domain] = score
        if row.multiple == sc.T_STAR:
            score_of[*key, AT_T_STAR, row.domain] = score
    for row in records(best_per_domain(merged, paper.accuracy_domains)):
        score_of[MERGED, family_of[row.method, row.space], row.space, BEST, row.domain] = Score(row.value, row.stderr)
    spaces: dict[str, list[str]] = {}
    settings: dict[str, list[str]] = {}
    for (method, space), algorithm in algorithms.items():
        if family_of[method, space] == algorithm:
            spaces.setdefault(algorithm, []).append(space)
        else:
            settings.setdefault(algorithm, []).append(method)
    items = {str(domain): int(count) for domain, count in rows.groupby("domain")["items"].max().items()}
    effects = {
        str(domain): design_effect(*of_domain[["value", "stderr", "items"]].to_numpy(dtype=float).T)
        for domain, of_domain in rows.groupby("domain")
    }
    durations = sorted(float(multiple) for multiple in merged["multiple"].dropna().unique())
    optima = _optima(inputs, base, merged) if durations == paper.durations else {}
    return Ours(base, score_of, spaces, settings, items, effects, optima, durations)


def _optima(inputs: Inputs, base: str, merged: pd.DataFrame) -> dict[tuple[str, str, str], BestDuration]:
    """The best durations of a base's merged models, as in :class:`Ours`."""
    family_of = sc.families(sc.methods(merged, NAMES))
    durations = merged[["duration", "multiple"]].drop_duplicates()
    optima = {}
    for row in records(optimal_durations(inputs, base, list(merged["domain"].unique()))):
        best_set, equal = row.best_set.split(), row.equal_best.split()
        words = f"our best set: {described(best_set, durations)}"
        if row.no_item:
            words = "no item tells our durations apart"
        elif len(equal) > 1:
            words = f"best alike: {described(equal, durations)}; {words}"
        multiple = row.multiple if len(equal) == 1 else None
        optimum = BestDuration(multiple, row.value, best_set, words)
        optima[family_of[row.method, row.space], row.space, row.domain] = optimum
    return optima


def published_stderr(published: Published, ours: Ours, printed: PrintedCell) -> tuple[float, str | None]:
    """The standard error of a printed share over its items, in percentage points, and what it assumes.

    It is 100 sqrt(d p (1 - p) / n) with the design effect d of our scores on the benchmark; of an average sqrt(sum of
    squares) / k over the k cells of its row.
    """
    known = [published.paper.benchmarks[domain].items for domain in printed.parts]
    variances = [
        ours.design_effects[domain] * percent * (100 - percent) / (count or ours.items[domain])
        for (domain, percent), count in zip(printed.parts.items(), known, strict=True)
    ]
    return float(np.sqrt(sum(variances))) / len(variances), None if all(known) else UNKNOWN_ITEMS


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
    key = (printed.subject, printed.method, space, printed.selection)
    known = {domain: ours.scores[*key, domain] for domain in printed.parts if (*key, domain) in ours.scores}
    lacking = next((domain for domain in printed.parts if domain not in known), None)
    if lacking is not None:
        what = printed.selection or printed.subject
        return _row(printed, ours.base, space, reason=f"this study has no score of {lacking} at {what}")
    assert printed.value is not None
    score = _mean(known, ours, published, printed)
    published_error, note = published_stderr(published, ours, printed)
    if printed.domain == AVERAGE and len(known) < len(published.paper.accuracy_domains):
        over = f"over {', '.join(known)} alone, as in the paper"
        note = f"{over}; {note}" if note else over
    tolerance = Z * float(np.hypot(score.stderr, published_error))
    difference = score.value - printed.value
    verdict = SAME if abs(difference) <= tolerance else DIFFERS
    return _row(printed, ours.base, space, score.value, difference, tolerance, verdict, note)


def _optimum(printed: PrintedCell, ours: Ours, space: str | None, published: Published) -> dict[str, object]:
    """The optimal duration: theirs is the same as ours where our best set holds it."""
    if ours.durations != published.paper.durations:
        return _row(printed, ours.base, space, reason=_other_durations(ours))
    keys = {
        duration: (printed.subject, printed.method, space, duration_id(duration), printed.domain)
        for duration in ours.durations
    }
    known = {duration: ours.scores[key] for duration, key in keys.items() if key in ours.scores}
    if len(known) < len(keys):
        return _row(printed, ours.base, space, reason=f"this study lacks {printed.domain} at some duration")
    assert printed.method is not None
    assert printed.value is not None
    assert space is not None
    optimum = ours.optima[printed.method, space, printed.domain]
    difference = known[printed.value].value - optimum.score
    verdict = SAME if duration_id(printed.value) in optimum.best_set else DIFFERS
    reason = optimum.described
    return _row(printed, ours.base, space, optimum.multiple, difference, verdict=verdict, reason=reason)


def _mean(known: Mapping[str, Score], ours: Ours, published: Published, printed: PrintedCell) -> Score:
    """The macro average of our scores by domain, which share no items, each error at least as both sides have it."""
    variances = []
    for domain, score in known.items():
        count = ours.items[domain]
        others = published.paper.benchmarks[domain].items or count
        together = (count * score.value + others * float(printed.parts[domain])) / (count + others)
        variances.append(max(score.stderr**2, ours.design_effects[domain] * together * (100 - together) / count))
    values = [score.value for score in known.values()]
    return Score(float(np.mean(values)), float(np.sqrt(sum(variances))) / len(values))


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
