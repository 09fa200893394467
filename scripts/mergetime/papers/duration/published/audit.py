"""The paper's tables checked against themselves.

Each check is a pure function from the tables to its findings. It speaks only where the disagreement is larger than
rounding allows, so that silence of a check means: these cells can all be right.
"""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from mergetime.papers.duration.names import SAFETY
from mergetime.papers.duration.published import numbers, statements
from mergetime.papers.duration.published.numbers import (
    AT_T_STAR,
    AVERAGE,
    BEST,
    MERGED,
    Published,
    groups,
    records,
)
from mergetime.papers.findings import TENTH, Audit, Finding, Findings, by_fact, cell

_ROW = ["table", "model", "subject", "method", "selection"]


def averages(published: Published) -> Findings:
    """Tables 3-5: the printed average against the mean of the row's cells.

    With k cells known to within 0.05 each, their mean is known to within 0.05, and so is the printed average: they
    disagree when they are more than 0.1 apart.
    """
    for name, row in _rows(published):
        parts = row.drop(AVERAGE).dropna()
        printed, mean = row[AVERAGE], parts.mean()
        if pd.notna(printed) and abs(printed - mean) > 2 * TENTH + 1e-9:
            yield Finding(
                "averages",
                name[0],
                cell(*name[1:], AVERAGE),
                f"{printed:.1f}",
                f"{mean:.2f}",
                f"the average of {', '.join(f'{value:.1f}' for value in parts)} is {mean:.2f}",
            )


def missing_cells(published: Published) -> Findings:
    """Tables 3-5: cells without a number."""
    for name, row in _rows(published):
        for domain in row.index[row.isna()]:
            message = f"no number for {domain}, which every other row of table {name[0]} has"
            where = cell(*name[1:], domain)
            yield Finding("missing_cells", name[0], where, "-", "a number", message, fact=_incomplete(name))


def averages_over_fewer(published: Published) -> Findings:
    """Tables 3-5: averages over fewer cells than the averages beside them, which are not comparable with them."""
    for name, row in _rows(published):
        parts = row.drop(AVERAGE)
        known = int(parts.notna().sum())
        if pd.notna(row[AVERAGE]) and known < len(parts):
            message = f"averages {known} of {len(parts)} domains, and stands beside averages of all"
            yield Finding(
                "averages_over_fewer",
                name[0],
                cell(*name[1:], AVERAGE),
                f"{row[AVERAGE]:.1f}",
                f"no average over {len(parts)} domains",
                message,
                fact=_incomplete(name),
            )


def best_below_t_star(published: Published) -> Findings:
    """Tables 3-5: the best over all durations is a maximum that T* takes part in, so it is never below it."""
    merged = published.accuracy[published.accuracy["subject"] == MERGED]
    for name, group in groups(merged, ["table", "model", "method", "domain"]):
        values = group.set_index("selection")["accuracy_pct"]
        if values[BEST] < values[AT_T_STAR]:
            message = f"the best of all durations, {values[BEST]:.1f}, is below {values[AT_T_STAR]:.1f} at T*"
            yield Finding(
                "best_below_t_star",
                str(name[0]),
                cell(*name[1:], BEST),
                f"{values[BEST]:.1f}",
                f"at least {values[AT_T_STAR]:.1f}",
                message,
            )


def optimum_at_t_star(published: Published) -> Findings:
    """Tables 7-9 against 3-5: where the optimal duration is 1 x T*, the best score is the one at T*.

    The converse does not hold: an equal score at another duration is a tie.
    """
    optima = published.optima[(published.optima["duration"] == 1) & (published.optima["domain"] != SAFETY)]
    for row in records(optima):
        values = _accuracy(published, row.model, row.method, row.domain)
        if values[BEST] != values[AT_T_STAR]:
            yield Finding(
                "optimum_at_t_star",
                str(row.table),
                cell(row.model, row.method, row.domain),
                "1.0x",
                "another duration",
                f"T* scores {values[AT_T_STAR]:.1f}, but the best is {values[BEST]:.1f}",
            )


def refusal_optima(published: Published) -> Findings:
    """Tables 7-9's safety column against table 2: it names a duration of the row's highest refusal rate."""
    columns = published.optima[published.optima["domain"] == SAFETY]
    printed = columns.set_index(["model", "method"])
    for name, group in groups(published.refusals, ["model", "method"]):
        top = group[group["refusal_rate_pct"] == group["refusal_rate_pct"].max()]
        stated = printed.loc[name]
        if stated["duration"] not in set(top["duration"]):
            highest = " and ".join(f"{duration}x" for duration in top["duration"])
            message = f"table 2's highest rate, {top['refusal_rate_pct'].iloc[0]:.1f}, is at {highest}"
            yield Finding(
                "refusal_optima", str(stated["table"]), cell(*name, SAFETY), f"{stated['duration']}x", highest, message
            )


def optimal_ranges(published: Published) -> Findings:
    """Table 6 against tables 7-9: from the lowest to the highest optimum over the accuracy domains."""
    optima = published.optima[published.optima["domain"] != SAFETY].groupby(["model", "method"])["duration"]
    lowest, highest = optima.min(), optima.max()
    for row in records(published.ranges):
        wanted = lowest[row.model, row.method], highest[row.model, row.method]
        printed = row.lowest_duration, row.highest_duration
        if wanted != printed:
            yield Finding(
                "optimal_ranges",
                "6",
                cell(row.model, row.method),
                "{}-{}x".format(*printed),
                "{}-{}x".format(*wanted),
                "the optima in tables 7-9 span {}-{}x".format(*wanted),
            )


def repeated_rows(published: Published) -> Findings:
    """Tables 2-5: two rows of different models with the same number in every cell; the later one is named."""
    rows = [(name, row.drop(AVERAGE), f"table {name[0]}") for name, row in _rows(published)]
    for name, group in groups(published.refusals, ["model", "method"]):
        rows.append((("2", *name), group.set_index("duration")["refusal_rate_pct"], "table 2"))
    seen: dict[tuple[float, ...], tuple[tuple[str, ...], str]] = {}
    for name, row, where in rows:
        values = tuple(row)
        earlier, place = seen.setdefault(values, (name, where))
        if earlier[1] != name[1]:
            numbers = " ".join(f"{value:.1f}" for value in values)
            message = f"every cell equals {cell(*earlier[1:])} in {place}, another model"
            yield Finding("repeated_rows", name[0], cell(*name[1:]), numbers, "numbers of its own", message)


def granularity(published: Published) -> Findings:
    """Tables 2-5: a share of n items is k / n for a whole k; no printed number may fall between those.

    For n = 1319, 541, 200 and 164 items; the number of multilingual items is unknown. Where 1 / n is finer than the
    last digit every number is possible, so this can only catch small benchmarks.
    """
    scores = published.accuracy[published.accuracy["domain"] != AVERAGE]
    cells = [
        (
            str(row.table),
            row.domain,
            row.accuracy_pct,
            cell(row.model, row.subject, row.method, row.selection, row.domain),
        )
        for row in records(scores)
    ]
    cells += [
        ("2", SAFETY, row.refusal_rate_pct, cell(row.model, row.method, f"{row.duration}x"))
        for row in records(published.refusals)
    ]
    for table, domain, value, name in cells:
        items = published.paper.benchmarks[domain].items
        if items is None or pd.isna(value):
            continue
        nearest = 100 * round(value * items / 100) / items
        if abs(nearest - value) > TENTH + 1e-9:
            message = f"no whole number of {items} items gives {value:.1f} %; the nearest share is {nearest:.2f} %"
            yield Finding("granularity", table, name, f"{value:.1f}", f"{nearest:.2f}", message)


CHECKS: dict[str, Callable[[Published], Findings]] = {
    check.__name__: check
    for check in (
        averages,
        missing_cells,
        averages_over_fewer,
        best_below_t_star,
        optimum_at_t_star,
        refusal_optima,
        optimal_ranges,
        repeated_rows,
        granularity,
    )
}
"""The checks on tables, by name. A new one is a function and an entry here."""


def audited(folder: Path) -> Audit:
    """The paper's tables against each other and its text against its tables, from the paper's folder.

    Raises:
        UserError: in one line, if a file of the folder is missing or malformed.
    """
    published = numbers.load(folder)
    stated = statements.load(folder / "statements.yaml")
    findings = [finding for check in CHECKS.values() for finding in check(published)]
    findings += [finding for statement in stated for finding in statements.hold(statement, published)]
    return Audit(published.paper.title, len(CHECKS), len(stated), by_fact(findings))


def _incomplete(row: tuple[str, ...]) -> str:
    """The fact that a row lacks a cell, whether the dash shows it or the average over the others."""
    return f"incomplete: {cell(*row)}"


def _rows(published: Published) -> list[tuple[tuple[str, ...], pd.Series]]:
    """Tables 3-5 by row: (table, model, subject, method, selection), and the values by domain."""
    return [
        (tuple(str(part) for part in name if not pd.isna(part)), group.set_index("domain")["accuracy_pct"])
        for name, group in groups(published.accuracy, _ROW)
    ]


def _accuracy(published: Published, model: object, method: object, domain: object) -> pd.Series:
    """A method's cells of one model and domain, by selection."""
    rows = published.accuracy
    rows = rows[(rows["model"] == model) & (rows["method"] == method) & (rows["domain"] == domain)]
    return rows.set_index("selection")["accuracy_pct"]
