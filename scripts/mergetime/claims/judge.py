"""From claims and evidence to verdicts: an interval for each effect, and what its rule says about that."""

import inspect
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.special import ndtr, stdtrit

from mergetime.claims.claim import Claim, Claims, DecisionRule, Verdict
from mergetime.claims.evidence import Evidence
from mergetime.claims.results import ALL_ALIKE, NO_ITEM, Bounds, Candidates, Draws, Estimate, NotTestableError, Result
from mergetime.claims.statistics import METHOD_PARAMETERS, STATISTICS, Context
from mergetime.core.tables import Column
from mergetime.publishing.markdown import escape, number, pipes

_UPPER = 0.975
"""The quantile at which 95 % intervals end."""
VERDICTS = ("supported", "contradicted", "undecided", "not_testable")
_FEWEST = 6
"""With fewer items percentiles of their draws cover 50 to 91 % (2 to 5 items)."""
_LISTED = 8
"""Candidates that are printed one by one; of more, the least and the greatest are."""

COLUMNS = {
    "claim": Column(pa.string(), False, "the claim's id in its file"),
    "paper": Column(pa.string(), False, "the paper that makes it, by its key in the file"),
    "section": Column(pa.string(), False, "where the paper makes it"),
    "text": Column(pa.string(), False, "the claim in words"),
    "statistic": Column(pa.string(), False, "what is computed; see mergetime.claims.statistics"),
    "parameters": Column(pa.string(), False, "the statistic's parameters, as JSON"),
    "rule": Column(pa.string(), False, "where the effect must lie for the claim to hold"),
    "ours": Column(
        pa.string(), True, "what of the rule or the statistic is ours, and what the paper says; null: nothing"
    ),
    "base": Column(pa.string(), True, "the base that it is judged on; null for claims about sizes"),
    "space": Column(pa.string(), True, "the space that the methods merge in; null where no method is concerned"),
    "effect": Column(pa.float64(), True, "the statistic on the data, in its unit"),
    "low": Column(pa.float64(), True, "lower end of the 95 % interval; the least of candidates"),
    "high": Column(pa.float64(), True, "upper end of the 95 % interval; the greatest of candidates"),
    "candidates": Column(
        pa.string(),
        True,
        "of best durations: the values that the effect may have, which decide; null: low and high decide",
    ),
    "unit": Column(pa.string(), False, "the unit of effect, low and high"),
    "verdict": Column(pa.string(), False, f"one of {', '.join(VERDICTS)}"),
    "reason": Column(pa.string(), True, "not testable: what the study has not measured"),
    "remark": Column(
        pa.string(),
        True,
        "why the claim cannot be met here, whatever the models do, or what the effect rests on; null: nothing",
    ),
}


@dataclass(frozen=True)
class Interval:
    """A statistic with its 95 % interval."""

    effect: float
    low: float
    high: float


def judged(claims: Claims, evidence: Evidence) -> pd.DataFrame:
    """Every claim on every base (and in every space that its methods merge in): columns :data:`COLUMNS`."""
    rows = [row for claim in claims.claims for row in _judge(claim, evidence)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def interval(result: Result) -> Interval:
    """The 95 % interval of a statistic: value -/+ t stderr of an estimate, of a bootstrap expanded percentiles.

    Of an estimate it ends at the smallest value that this can have. Of a best set it reaches from its least to its
    most. Percentiles of the replicates are those at Phi(-/+ t sqrt(n / (n - 1))), with t the 97.5 % quantile of
    Student's t with n - 1 degrees of freedom and n the smallest sample: the plain percentile interval is too narrow for
    small samples, by just that factor for a mean (Hesterberg 2015, What teachers should know about the bootstrap,
    section 4.3). Of R replicates, the quantile p is the p (R + 1)-th in order, interpolated (Davison and Hinkley 1997,
    Bootstrap methods and their application, section 5.2.1): exact for any R, where the p (R - 1) + 1-th is too far
    inside.
    """
    if isinstance(result, Bounds):
        return Interval(result.value, result.low, result.high)
    if isinstance(result, Candidates):
        return Interval(result.value, float(result.values.min()), float(result.values.max()))
    if isinstance(result, Estimate):
        reach = float(stdtrit(result.freedom, _UPPER)) * result.stderr
        return Interval(result.value, max(result.value - reach, result.least), result.value + reach)
    n = result.items
    tail = ndtr(-stdtrit(n - 1, _UPPER) * math.sqrt(n / (n - 1)))
    low, high = np.quantile(result.replicates, [tail, 1 - tail], method="weibull")
    return Interval(result.value, float(low), float(high))


def decided(rule: DecisionRule, result: Result) -> Verdict:
    """What a rule says of a statistic: by its candidates, where it has some, else by its interval."""
    if isinstance(result, Candidates):
        return rule.decide_among(result.values.tolist())
    ends = interval(result)
    return rule.decide(ends.low, ends.high)


def units(claim: Claim, evidence: Evidence) -> list[tuple[str, str | None]]:
    """The bases and spaces that a claim is judged on; for a claim about sizes the first base stands for all."""
    bases = list(evidence.scores)
    if STATISTICS[claim.statistic].per == "study":
        bases = bases[:1]
    return [(base, space) for base in bases for space in _spaces(claim, evidence, base)]


def markdown(frame: pd.DataFrame, claims: Claims, study: str) -> str:
    """The verdicts as Markdown, paper by paper."""
    counts = frame["verdict"].value_counts()
    lines = [f"# Claims judged on the study {escape(study)}", ""]
    lines += [f"{len(frame)} judgements: {', '.join(f'{counts.get(name, 0)} {name}' for name in VERDICTS)}.", ""]
    lines += [
        "Supported: the whole 95 % interval satisfies the rule; contradicted: all of it violates the rule; undecided:",
        "neither. Intervals are over test items, over the experts of pairs, or over examples; none holds the spread",
        "over training seeds, and none is corrected for the number of claims. Best durations have no interval but the",
        "set of those that cannot be told apart, which decides in the same way; like the sets of tables, it holds the",
        "spread over training seeds where there are three or more. An effect that compares a best score is that of the",
        "highest score seen, which noise favours; its interval allows for that. Where the paper gives no number or no",
        "measure, a rule says what of it is ours.",
        "",
    ]
    header = ["claim", "section", "rule", "base", "effect", "95 % interval or set", "unit", "verdict"]
    for key, title in claims.papers.items():
        rows = frame[frame["paper"] == key]
        if not rows.empty:
            lines += [
                f"## {escape(key)}: {escape(title)}",
                "",
                *pipes(header, [_texts(row) for _, row in rows.iterrows()]),
                "",
            ]
    return "\n".join(lines)


def _judge(claim: Claim, evidence: Evidence) -> Iterator[dict[str, object]]:
    statistic = STATISTICS[claim.statistic]
    stated: Mapping[str, object] = {
        "claim": claim.id,
        "paper": claim.paper,
        "section": claim.section,
        "text": claim.claim,
        "statistic": claim.statistic,
        "parameters": json.dumps(claim.parameters, sort_keys=True),
        "rule": str(claim.rule),
        "ours": claim.ours,
        "unit": statistic.unit.format(**_parameters(claim)),
        "candidates": None,
    }
    for base, space in units(claim, evidence):
        on = {**stated, "base": None if statistic.per == "study" else base, "space": space}
        try:
            value = statistic.function(Context(evidence, base, space), **claim.parameters)
            _refuse_untold(claim.rule, value, in_points="points" in statistic.unit)
        except NotTestableError as error:
            yield {**on, "verdict": "not_testable", "reason": str(error)}
        else:
            yield {
                **on,
                **asdict(interval(value)),
                "candidates": _joined(value),
                "verdict": decided(claim.rule, value),
                "remark": _remark(claim, value),
            }


def _refuse_untold(rule: DecisionRule, value: Result, *, in_points: bool) -> None:
    """Refuse to judge what test items do not tell, or what the durations that the study keeps tell without them.

    Raises:
        NotTestableError: saying why.
    """
    if isinstance(value, Draws) and value.items < _FEWEST:
        raise NotTestableError(
            f"needs at least {_FEWEST} test items, translations counted once; there are {value.items}"
        )
    if isinstance(value, Draws) and in_points and np.ptp(value.replicates) < 1e-9:
        raise NotTestableError(NO_ITEM if abs(value.value) < 1e-9 else ALL_ALIKE)
    if isinstance(value, Candidates) and len({rule.holds(possible) for possible in value.possible.tolist()}) == 1:
        listed = ", ".join(f"{possible:g}" for possible in value.possible)
        raise NotTestableError(f"the durations that the study keeps decide it: the effect can be {listed} alone")


def _joined(value: Result) -> str | None:
    """The values that the effect may have, where they are a set and no interval."""
    return " ".join(f"{candidate:g}" for candidate in value.values) if isinstance(value, Candidates) else None


def _remark(claim: Claim, value: Result) -> str | None:
    """What the effect rests on, or why a contradicted claim would be so whatever the models did; None of neither."""
    if isinstance(value, (Estimate, Candidates)):
        return value.remark
    limit = value.limit if isinstance(value, Bounds) else None
    if limit is None or decided(claim.rule, value) != "contradicted" or claim.rule.holds(limit.value):
        return None
    return f"cannot be met: {limit.because}" if limit.value <= claim.rule.bounds[0] else None


def _parameters(claim: Claim) -> dict[str, object]:
    """A claim's parameters, and the defaults of those that it leaves out."""
    bound = inspect.signature(STATISTICS[claim.statistic].function).bind(None, **claim.parameters)
    bound.apply_defaults()
    return dict(bound.arguments)


def _spaces(claim: Claim, evidence: Evidence, base: str) -> list[str | None]:
    """The spaces that all of the claim's methods merge in on a base; None where there is none, or no method."""
    spaces = evidence.scores[base].spaces
    method_parameters = [claim.parameters[name] for name in METHOD_PARAMETERS if name in claim.parameters]
    # Of a list of methods one is enough; methods that are compared must share a space.
    choices = [
        {space for method in (value if isinstance(value, list) else [value]) for space in spaces.get(method, [])}
        for value in method_parameters
    ]
    return [*sorted(set.intersection(*choices))] or [None] if choices else [None]


@dataclass(frozen=True)
class Words:
    """A row of the verdicts in print.

    Attributes:
        rule: with what of it is ours.
        effect: rounded.
        interval: at 95 %, rounded; or the few values that the effect may have.
        where: the base and the space that it was judged on.
        comment: why it is not testable, why the claim cannot be met, or what the effect rests on; else empty.
    """

    rule: str
    effect: str
    interval: str
    where: str
    comment: str


def words(row: pd.Series) -> Words:
    """A row in print, numbers rounded as their unit asks for."""
    digits = 3 if row["unit"].startswith(("nats", "a doubling")) else 2
    bounds = "—" if pd.isna(row["low"]) else f"{number(row['low'], digits)} to {number(row['high'], digits)}"
    candidates = "" if pd.isna(row["candidates"]) else row["candidates"].split()
    if 0 < len(candidates) <= _LISTED:
        bounds = ", ".join(number(float(value), digits) for value in candidates)
    where = " ".join(str(row[name]) for name in ("base", "space") if pd.notna(row[name])) or "all"
    rule = row["rule"] if pd.isna(row["ours"]) else f"{row['rule']} (ours: {row['ours']})"
    comment = next((row[name] for name in ("reason", "remark") if pd.notna(row[name])), "")
    return Words(rule, number(row["effect"], digits), bounds, where, comment)


def _texts(row: pd.Series) -> list[str]:
    printed = words(row)
    verdict = ": ".join(text for text in (row["verdict"], printed.comment) if text)
    stated = [f"{row['text']} ({row['claim']})", row["section"], printed.rule, printed.where]
    return [*stated, printed.effect, printed.interval, row["unit"], verdict]
