"""What an audit finds: one cell that does not agree with the rest of the paper."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import pandas as pd
import pyarrow as pa

from mergetime.core.tables import Column

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
    """One disagreement; fields as :data:`COLUMNS`."""

    check: str
    table: str
    cell: str
    printed: str
    recomputed: str
    message: str
    section: str | None = None


Findings = Iterator[Finding]


def frame(findings: Iterable[Finding]) -> pd.DataFrame:
    """The findings as a frame with the columns :data:`COLUMNS`."""
    names = [field.name for field in fields(Finding)]
    return pd.DataFrame([asdict(finding) for finding in findings], columns=names)[list(COLUMNS)]


def cell(*parts: Any) -> str:
    """The name of a cell: its coordinates that are not null."""
    return ", ".join(str(part) for part in parts if not pd.isna(part))
