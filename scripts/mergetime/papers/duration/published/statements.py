"""What the paper's text states about its tables, checked against them.

The statements are in config/papers/duration/statements.yaml; each names one of the checks below. A check yields a
finding for every cell that does not bear its statement out.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import Field, model_validator

from mergetime.core import yaml_text
from mergetime.core.errors import UserError
from mergetime.core.sections import Strict, validated_list
from mergetime.core.words import nearest
from mergetime.papers.duration.published.numbers import (
    AT_T_STAR,
    AVERAGE,
    BASE,
    BEST,
    EXPERT,
    MERGED,
    Published,
    groups,
    records,
)
from mergetime.papers.findings import TENTH, Finding, Findings, cell


class Statement(Strict):
    """A statement of the text: where it is made, which check compares it with the tables, and the check's arguments.

    Statements of several places that say the same share a ``fact``.
    """

    id: str
    fact: str | None = None
    section: str
    check: str
    methods: list[str] = Field(default_factory=list)
    models: list[str] = Field(default_factory=list)
    domain: str | None = None
    domains: list[str] = Field(default_factory=list)
    duration: float | None = None
    value: float | None = None
    lowest: float | None = None
    highest: float | None = None
    over: str | None = None
    side: Literal["below", "above"] | None = None

    @model_validator(mode="after")
    def _complete(self) -> "Statement":
        if self.check not in CHECKS:
            raise ValueError(f"check {self.check!r} is unknown{nearest(self.check, CHECKS)}")
        missing = [name for name in _NEEDS.get(self.check, ()) if getattr(self, name) in (None, [])]
        if missing:
            raise ValueError(f"{self.id}: {self.check} needs {missing[0]}")
        return self


def load(path: Path) -> list[Statement]:
    """The statements in a YAML file.

    Raises:
        UserError: in one line, if a statement is malformed, or two share an id.
    """
    statements = validated_list(Statement, yaml_text.read(path), str(path))
    repeated = {statement.id for statement in statements if [other.id for other in statements].count(statement.id) > 1}
    if repeated:
        raise UserError(f"{path}: two statements have the id {min(repeated)}")
    return statements


def hold(statement: Statement, published: Published) -> Findings:
    """The findings of one statement. What statements of one fact say of a model and method is the same fact."""
    for finding in CHECKS[statement.check](statement, published):
        # Cells begin with the model and the method, in whose names there are no commas.
        of = cell(statement.fact, *finding.cell.split(", ")[:2])
        yield replace(finding, fact=of) if statement.fact else finding


def ranges_within(statement: Statement, published: Published) -> Findings:
    """Table 6: each range of optimal durations lies within the stated one."""
    lowest, highest = _bounds(statement)
    for row in records(_of(published.ranges, statement)):
        if row.lowest_duration < lowest or row.highest_duration > highest:
            printed = f"{row.lowest_duration}-{row.highest_duration}x"
            message = f"stated to lie within {lowest}-{highest}x, printed as {printed}"
            yield _finding(statement, "6", cell(row.model, row.method), f"{lowest}-{highest}x", printed, message)


def ranges_rise_with_size(statement: Statement, published: Published) -> Findings:
    """Table 6: neither end of a method's range is earlier for a larger model than for the next smaller one."""
    for (method,), rows in groups(_of(published.ranges, statement), ["method"]):
        for before, after in pairwise(records(_by_size(rows, published))):
            if after.lowest_duration < before.lowest_duration or after.highest_duration < before.highest_duration:
                later = f"{after.lowest_duration}-{after.highest_duration}x"
                earlier = f"{before.lowest_duration}-{before.highest_duration}x"
                message = f"stated to shift later with size, but goes from {earlier} for {before.model} to {later}"
                yield _finding(statement, "6", cell(after.model, method), "later with size", later, message)


def optima_rise_with_size(statement: Statement, published: Published) -> Findings:
    """Tables 7-9: a domain's optimum is not earlier for a larger model than for the next smaller one."""
    optima = _of(published.optima, statement)
    for (method,), rows in groups(optima[optima["domain"] == statement.domain], ["method"]):
        for before, after in pairwise(records(_by_size(rows, published))):
            if after.duration < before.duration:
                message = (
                    f"stated to drift later with size, but goes from {before.duration}x for {before.model} "
                    f"to {after.duration}x"
                )
                yield _finding(
                    statement,
                    str(after.table),
                    cell(after.model, method, after.domain),
                    "later with size",
                    f"{after.duration}x",
                    message,
                )


def optima_on_side(statement: Statement, published: Published) -> Findings:
    """Tables 7-9: in these domains the optimum is below, or above, 1 x T*."""
    optima = _of(published.optima, statement)
    for row in records(optima[optima["domain"].isin(statement.domains)]):
        if not (row.duration < 1 if statement.side == "below" else row.duration > 1):
            name = cell(row.model, row.method, row.domain)
            message = f"stated to peak {statement.side} T*, printed as {row.duration}x"
            yield _finding(statement, str(row.table), name, f"{statement.side} 1x", f"{row.duration}x", message)


def optimum_is(statement: Statement, published: Published) -> Findings:
    """Tables 7-9: the stated duration is the optimum of a domain."""
    optima = _of(published.optima, statement)
    for row in records(optima[optima["domain"] == statement.domain]):
        if row.duration != statement.duration:
            name = cell(row.model, row.method, row.domain)
            message = f"stated to peak at {statement.duration}x, printed as {row.duration}x"
            yield _finding(statement, str(row.table), name, f"{statement.duration}x", f"{row.duration}x", message)


def best_cell(statement: Statement, published: Published) -> Findings:
    """Tables 3-5 and 7-9: the stated score is the best of a domain, and the stated duration its optimum."""
    yield from optimum_is(statement, published)
    rows = _of(published.accuracy, statement)
    for row in records(rows[(rows["selection"] == BEST) & (rows["domain"] == statement.domain)]):
        if row.accuracy_pct != statement.value:
            name = cell(row.model, row.method, row.selection, row.domain)
            message = f"stated to peak at {statement.value} %, printed as {row.accuracy_pct}"
            yield _finding(statement, str(row.table), name, f"{statement.value}", f"{row.accuracy_pct}", message)


def gains_between(statement: Statement, published: Published) -> Findings:
    """Tables 3-5: the best average exceeds that at T* by the stated points; each is known to within 0.05."""
    lowest, highest = _bounds(statement)
    for table, model, method, values in _averages(statement, published):
        gain = values[BEST] - values[AT_T_STAR]
        if not lowest - 2 * TENTH <= gain <= highest + 2 * TENTH:
            message = f"stated to gain {lowest} to {highest} points, the table's gain is {gain:.1f}"
            yield _finding(statement, table, cell(model, method), f"{lowest}-{highest}", f"{gain:.1f}", message)


def averages_improve(statement: Statement, published: Published) -> Findings:
    """Tables 3-5: the best average exceeds that at T*."""
    for table, model, method, values in _averages(statement, published):
        if not values[BEST] > values[AT_T_STAR]:
            message = f"stated to outperform T*, {values[BEST]} against {values[AT_T_STAR]}"
            yield _finding(
                statement, table, cell(model, method), f"above {values[AT_T_STAR]}", f"{values[BEST]}", message
            )


def best_average_by(statement: Statement, published: Published) -> Findings:
    """Tables 3-5: the highest average of a model belongs to one of the stated methods."""
    rows = published.accuracy
    rows = rows[(rows["subject"] == MERGED) & (rows["selection"] == BEST) & (rows["domain"] == AVERAGE)]
    for (table, model), group in groups(rows, ["table", "model"]):
        values = group.set_index("method")["accuracy_pct"]
        theirs, top = values[statement.methods].max(), values.max()
        if theirs < top:
            name = cell(model, MERGED, values.idxmax(), BEST, AVERAGE)
            message = (
                f"{' and '.join(statement.methods)} are stated to give the best merges; they reach {theirs:.1f}, "
                f"{values.idxmax()} {top:.1f}"
            )
            yield _finding(statement, str(table), name, f"at most {theirs:.1f}", f"{top:.1f}", message)


def refusals_at_most(statement: Statement, published: Published) -> Findings:
    """Table 2: no rate of these rows exceeds the stated ceiling."""
    assert statement.highest is not None
    for row in records(_of(published.refusals, statement)):
        if row.refusal_rate_pct > statement.highest:
            name = cell(row.model, row.method, f"{row.duration}x")
            message = f"stated to be at or below {statement.highest} %, printed as {row.refusal_rate_pct}"
            yield _finding(statement, "2", name, f"at most {statement.highest}", f"{row.refusal_rate_pct}", message)


def refusal_peak(statement: Statement, published: Published) -> Findings:
    """Table 2: the row peaks at the stated duration, and at the stated rate where one is stated."""
    for name, row in _refusal_rows(statement, published):
        top = row.max()
        if row.get(statement.duration) != top or statement.value not in (None, top):
            peaks = " and ".join(f"{duration}x" for duration in row.index[row == top])
            value = "" if statement.value is None else f"{statement.value} at "
            message = f"stated to peak with {value}{statement.duration}x, the row's highest is {top} at {peaks}"
            yield _finding(statement, "2", cell(*name), f"{value}{statement.duration}x", f"{top} at {peaks}", message)


def refuse_more(statement: Statement, published: Published) -> Findings:
    """Table 2: at no duration does another method refuse more than a stated one; ``over`` names that other method.

    Without ``over`` it is every method that is not stated. An equal rate is no finding.
    """
    for (model,), of_model in groups(published.refusals, ["model"]):
        rates = of_model.pivot_table("refusal_rate_pct", "duration", "method")
        others = rates[[statement.over]] if statement.over else rates.drop(columns=statement.methods)
        for method in statement.methods:
            below = rates.index[rates[method] < others.max(axis=1)]
            if below.empty:
                continue
            more = ", ".join(f"{others.loc[at].max()} ({others.loc[at].idxmax()})" for at in below)
            durations = ", ".join(f"{at}x" for at in below)
            printed = ", ".join(f"{rates.loc[at, method]}" for at in below)
            message = f"stated to retain more refusals; at {durations} it has {printed} and another method {more}"
            yield _finding(statement, "2", cell(model, method, durations), f"at least {more}", printed, message)


def refusals_fall_at_ends(statement: Statement, published: Published) -> Findings:
    """Table 2: at the shortest and the longest duration, the rate is at most the stated share of the row's highest."""
    assert statement.highest is not None
    for (model, method), row in _refusal_rows(statement, published):
        for duration in (row.index.min(), row.index.max()):
            if row[duration] > statement.highest * row.max():
                share = row[duration] / row.max()
                message = f"stated to retain little refusal at extreme durations; keeps {share:.0%} of its {row.max()}"
                name, most = cell(model, method, f"{duration}x"), statement.highest * row.max()
                yield _finding(statement, "2", name, f"at most {most:.1f}", f"{row[duration]}", message)


def gap_recovered(statement: Statement, published: Published) -> Findings:
    """Tables 3-5: the best average is at least the stated share of the way from the base's to the experts'.

    Where a row lacks a domain, all three averages are taken over the others.
    """
    assert statement.lowest is not None
    for (table, model), of_model in groups(published.accuracy, ["table", "model"]):
        row_of = {
            name: rows.set_index("domain")["accuracy_pct"]
            for name, rows in groups(of_model, ["subject", "method", "selection"])
            if name[-1] != AT_T_STAR or name[0] == EXPERT
        }
        by_subject = {subject: row for (subject, method, _), row in row_of.items() if subject != MERGED}
        for method in statement.methods:
            rows = pd.DataFrame({**by_subject, BEST: row_of[MERGED, method, BEST]})
            whole = rows.notna().all(axis=None)
            averages = rows.loc[AVERAGE] if whole else rows.drop(AVERAGE).dropna().mean()
            share = (averages[BEST] - averages[BASE]) / (averages[EXPERT] - averages[BASE])
            if share < statement.lowest:
                domains = "" if whole else f" (over {', '.join(rows.drop(AVERAGE).dropna().index)})"
                message = (
                    f"stated to recover most of the gap between the base, {averages[BASE]:.1f}, and the experts, "
                    f"{averages[EXPERT]:.1f}; {averages[BEST]:.1f} recovers {share:.0%} of it{domains}"
                )
                name, least = cell(model, MERGED, method, BEST, AVERAGE), f"at least {statement.lowest:.0%}"
                yield _finding(statement, str(table), name, least, f"{share:.0%}", message)


def refusal_ratio(statement: Statement, published: Published) -> Findings:
    """Table 2: the row's highest rate is at least the stated multiple of the highest of another method."""
    assert statement.lowest is not None
    for (model, method), row in _refusal_rows(statement, published):
        rows = published.refusals
        other = rows[(rows["model"] == model) & (rows["method"] == statement.over)]["refusal_rate_pct"].max()
        if row.max() < statement.lowest * other:
            ratio = row.max() / other
            message = f"stated to be more than {statement.lowest} times {statement.over}, the ratio is {ratio:.2f}"
            yield _finding(statement, "2", cell(model, method), f"{statement.lowest}", f"{ratio:.2f}", message)


CHECKS: dict[str, Callable[[Statement, Published], Findings]] = {
    check.__name__: check
    for check in (
        ranges_within,
        ranges_rise_with_size,
        optima_rise_with_size,
        optima_on_side,
        optimum_is,
        best_cell,
        gains_between,
        averages_improve,
        best_average_by,
        refusals_at_most,
        refusal_peak,
        refuse_more,
        refusals_fall_at_ends,
        gap_recovered,
        refusal_ratio,
    )
}
"""The checks that a statement may name. A new one is a function and an entry here."""

_NEEDS = {
    "ranges_within": ["methods", "lowest", "highest"],
    "ranges_rise_with_size": ["methods"],
    "optima_rise_with_size": ["methods", "domain"],
    "optima_on_side": ["methods", "domains", "side"],
    "optimum_is": ["methods", "domain", "duration"],
    "best_cell": ["methods", "domain", "duration", "value"],
    "gains_between": ["methods", "lowest", "highest"],
    "best_average_by": ["methods"],
    "refusals_at_most": ["methods", "highest"],
    "refusal_peak": ["methods", "duration"],
    "refuse_more": ["methods"],
    "refusals_fall_at_ends": ["methods", "highest"],
    "gap_recovered": ["methods", "lowest"],
    "refusal_ratio": ["methods", "over", "lowest"],
}


def _finding(statement: Statement, table: str, name: str, printed: str, recomputed: str, message: str) -> Finding:
    return Finding(statement.id, table, name, printed, recomputed, message, statement.section)


def _of(frame: pd.DataFrame, statement: Statement) -> pd.DataFrame:
    """The rows of the statement's methods and models; all where it names none."""
    for column, names in (("method", statement.methods), ("model", statement.models)):
        frame = frame[frame[column].isin(names)] if names else frame
    return frame


def _by_size(rows: pd.DataFrame, published: Published) -> pd.DataFrame:
    return rows.sort_values("model", key=lambda column: column.map(published.models.index))


def _bounds(statement: Statement) -> tuple[float, float]:
    assert statement.lowest is not None
    assert statement.highest is not None
    return statement.lowest, statement.highest


def _averages(statement: Statement, published: Published) -> Iterable[tuple[str, str, str, pd.Series]]:
    rows = _of(published.accuracy, statement)
    rows = rows[(rows["subject"] == MERGED) & (rows["domain"] == AVERAGE)]
    for (table, model, method), group in groups(rows, ["table", "model", "method"]):
        yield str(table), str(model), str(method), group.set_index("selection")["accuracy_pct"]


def _refusal_rows(statement: Statement, published: Published) -> Iterable[tuple[tuple[str, str], pd.Series]]:
    for (model, method), group in groups(_of(published.refusals, statement), ["model", "method"]):
        yield (str(model), str(method)), group.set_index("duration")["refusal_rate_pct"]
