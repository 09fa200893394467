"""What the audit of a paper finds: what it prints or states that does not agree with the rest of it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import pandas as pd
import pyarrow as pa

from mergetime.core.tables import Column
from mergetime.publishing.markdown import escape, pipes

COLUMNS = {
    "check": Column(pa.string(), False, "the check that failed; for a statement of the text, its id"),
    "section": Column(pa.string(), True, "for a statement of the text: its section or caption"),
    "table": Column(pa.string(), False, "the paper's table that holds the cell"),
    "cell": Column(pa.string(), False, "model, method, domain and duration of the cell"),
    "printed": Column(pa.string(), False, "what the paper prints, or states"),
    "recomputed": Column(pa.string(), False, "what follows from the rest of the paper"),
    "message": Column(pa.string(), False, "what does not agree, in a sentence"),
}
TENTH = 0.05
"""Half of the last printed digit: a printed number is known to within this."""


@dataclass(frozen=True)
class Finding:
    """One disagreement; fields as :data:`COLUMNS`.

    Attributes:
        fact: the same for places that state or print the same, which are one finding; None: no other place does.
    """

    check: str
    table: str
    cell: str
    printed: str
    recomputed: str
    message: str
    section: str | None = None
    fact: str | None = None


Findings = Iterator[Finding]


@dataclass(frozen=True)
class Audit:
    """A paper checked against itself: the checks of its tables, the statements of its text, and what they found."""

    title: str
    checks: int
    statements: int
    findings: list[Finding]


def frame(findings: Iterable[Finding]) -> pd.DataFrame:
    """The findings as a frame with the columns :data:`COLUMNS`."""
    names = [field.name for field in fields(Finding)]
    return pd.DataFrame([asdict(finding) for finding in findings], columns=names)[list(COLUMNS)]


def by_fact(findings: Iterable[Finding]) -> list[Finding]:
    """One finding for each fact, where its first place is; what several places differ in is listed with semicolons."""
    places: dict[object, list[Finding]] = {}
    for number, finding in enumerate(findings):
        places.setdefault(finding.fact or number, []).append(finding)
    return [_joined(of_fact) for of_fact in places.values()]


def _joined(places: Sequence[Finding]) -> Finding:
    values = ([str(getattr(place, name)) for place in places if getattr(place, name)] for name in COLUMNS)
    texts = {name: "; ".join(dict.fromkeys(of_name)) for name, of_name in zip(COLUMNS, values, strict=True)}
    return replace(places[0], **{name: text for name, text in texts.items() if text})


def markdown(audit: Audit) -> str:
    """The audit as Markdown, a row per finding."""
    count = f"{len(audit.findings)} findings"
    lines = [f"# {escape(audit.title)}: what does not agree", ""]
    lines += [
        f"{audit.checks} checks of tables against tables and {audit.statements} statements of the text: {count}.",
        "A fact that several places state or print is one finding.",
        "",
    ]
    header = ["check", "section", "table", "cell", "printed or stated", "recomputed", "finding"]
    rows = [
        [row.check, row.section or "", row.table, row.cell, row.printed, row.recomputed, row.message]
        for row in audit.findings
    ]
    return "\n".join([*lines, *pipes(header, rows), ""])


def cell(*parts: Any) -> str:
    """The name of a cell: its coordinates that are not null."""
    return ", ".join(str(part) for part in parts if not pd.isna(part))
