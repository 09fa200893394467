"""What was decided: the claims, our numbers beside the published ones, and the paper against itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mergetime.claims.judge import VERDICTS as CLAIM_VERDICTS
from mergetime.claims.judge import words
from mergetime.papers.comparison import DIFFERS, NOT_COMPARABLE, SAME
from mergetime.publishing.markdown import number
from mergetime.report.listing import Listing, TextCell, listing

_SIGNS = {"supported": "✓", "same": "✓", "contradicted": "✗", "differs": "✗", "undecided": "?"}
"""Beside the colour of a verdict, for readers who do not see it."""


@dataclass(frozen=True)
class Count:
    """How many rows have a verdict."""

    verdict: TextCell
    count: int


def counts(verdicts: pd.Series, known: Sequence[str]) -> list[Count]:
    """How often each verdict of ``known`` was given."""
    occurrences = verdicts.value_counts()
    return [Count(verdict(name), int(occurrences.get(name, 0))) for name in known]


def of_claims(frame: pd.DataFrame) -> list[Count]:
    """The verdicts on claims, counted."""
    return counts(frame["verdict"], CLAIM_VERDICTS)


def of_comparison(frame: pd.DataFrame) -> list[Count]:
    """The verdicts on printed numbers, counted."""
    return counts(frame["verdict"], (SAME, DIFFERS, NOT_COMPARABLE))


def verdict(name: str, reason: str = "") -> TextCell:
    """A verdict with its sign, and the reason below it."""
    text = name.replace("_", " ")
    return TextCell(f"{_SIGNS.get(name, '–')} {text}", reason, f"verdict {name}")


def claims(frame: pd.DataFrame, papers: Mapping[str, str]) -> Listing:
    """Every judgement with its effect, paper by paper."""
    rows: list[Sequence[Any] | str] = []
    for paper, of_paper in frame.groupby("paper", sort=False):
        rows += [papers.get(str(paper), str(paper)), *(_claim(row) for _, row in of_paper.iterrows())]
    head = ["claim", "verdict", "effect", "95 % interval or set", "unit", "rule", "on", "section"]
    return listing(head, rows, numbers=(2, 3))


def comparison(frame: pd.DataFrame) -> Listing:
    """The published numbers that can be compared, beside ours."""
    rows = [
        [
            *(_text(row[name]) for name in ("table", "model", "subject", "method", "space", "selection", "domain")),
            *(number(row[name]) for name in ("published", "ours", "difference", "tolerance")),
            verdict(row["verdict"], _text(row["reason"])),
        ]
        for _, row in frame[frame["verdict"] != NOT_COMPARABLE].iterrows()
    ]
    head = ["table", "model", "subject", "method", "space", "at", "domain", "published", "ours", "difference"]
    return listing([*head, "tolerance", "verdict"], rows, numbers=(7, 8, 9, 10))


def not_comparable(frame: pd.DataFrame) -> Listing:
    """Why published numbers cannot be compared, with how many."""
    reasons = frame.loc[frame["verdict"] == NOT_COMPARABLE, "reason"].value_counts()
    return listing(["not comparable, because", "numbers"], list(reasons.items()), numbers=(1,))


def audit(frame: pd.DataFrame) -> Listing:
    """What does not agree within the paper."""
    names = ["table", "section", "cell", "printed", "recomputed", "message"]
    rows = [[_text(row[name]) for name in names] for _, row in frame.iterrows()]
    return listing(["table", "section", "cell", "printed or stated", "recomputed", "finding"], rows)


def _claim(row: pd.Series) -> list[Any]:
    printed = words(row)
    decided = verdict(row["verdict"], printed.comment)
    numbers = [printed.effect, printed.interval, row["unit"]]
    return [TextCell(row["text"], row["claim"]), decided, *numbers, printed.rule, printed.where, row["section"]]


def _text(value: Any) -> str:
    return "" if pd.isna(value) else str(value)
