"""A study's numbers beside printed ones: the columns, the verdicts, and the page that lists them."""

import pandas as pd
import pyarrow as pa

from mergetime.core.tables import Column
from mergetime.publishing.markdown import escape, number, pipes

SAME, DIFFERS, NOT_COMPARABLE = "same", "differs", "not_comparable"

COLUMNS = {
    "table": Column(pa.string(), False, "the paper's table"),
    "model": Column(pa.string(), False, "the paper's model"),
    "base": Column(pa.string(), True, "the base of this study that stands for it"),
    "subject": Column(pa.string(), False, "base, expert or merged"),
    "method": Column(pa.string(), True, "merged: the paper's method"),
    "space": Column(pa.string(), True, "merged: where ours merges; the paper does not say where its own does"),
    "selection": Column(pa.string(), True, "T*, best over durations, optimum, or a duration"),
    "domain": Column(pa.string(), False, "the domain, or the average over the accuracy domains"),
    "unit": Column(pa.string(), False, "of published and ours: percent, or multiple (of T*) for optimal durations"),
    "published": Column(pa.float64(), True, "the printed number"),
    "ours": Column(pa.float64(), True, "this study's number; null for optimal durations where several are best"),
    "difference": Column(
        pa.float64(),
        True,
        "ours - published, percentage points; for optimal durations, our score at the paper's optimum minus our best",
    ),
    "tolerance": Column(
        pa.float64(), True, "percentage points that sampling of items explains, 95 %; null for optimal durations"
    ),
    "verdict": Column(
        pa.string(),
        False,
        "same: |difference| <= tolerance, or our best set holds the paper's optimal duration; differs; not_comparable",
    ),
    "reason": Column(pa.string(), True, "why not comparable, what the tolerance assumes, or our best set"),
}


def markdown(frame: pd.DataFrame, study: str, paper: str) -> str:
    """The comparison as Markdown: how many cells agree, then those that can be compared, then why others cannot."""
    counts = frame["verdict"].value_counts()
    total = ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in (SAME, DIFFERS, NOT_COMPARABLE))
    lines = [f"# {escape(study)} beside {escape(paper)}", "", f"{len(frame)} cells: {total}.", ""]
    lines += [
        "Same means within 1.96 standard errors of both sides' items together; of cells that agree in truth, one in",
        "twenty differs by chance. For an optimal duration it means that our best set, as the tables of best durations",
        "print it, holds the paper's.",
        "",
    ]
    known = frame[frame["verdict"] != NOT_COMPARABLE]
    if not known.empty:
        header = ["table", "cell", "unit", "published", "ours", "difference, points", "tolerance", "verdict", "note"]
        lines += [*pipes(header, [_texts(row) for _, row in known.iterrows()]), ""]
    rest = frame[frame["verdict"] == NOT_COMPARABLE]
    if not rest.empty:
        rows = [
            [*map(str, name), str(len(group))]
            for name, group in rest.groupby(["model", "reason"], sort=False, dropna=False)
        ]
        lines += pipes(["model", "not comparable because", "cells"], rows)
    return "\n".join([*lines, ""])


def _texts(row: pd.Series) -> list[str]:
    parts = [row[name] for name in ("model", "subject", "method", "space", "selection", "domain")]
    cell = ", ".join(str(part) for part in parts if pd.notna(part))
    digits = 2 if row["unit"] == "multiple" else 1
    numbers = [number(row["published"], digits), number(row["ours"], digits)]
    numbers += [number(row["difference"]), number(row["tolerance"])]
    return [row["table"], cell, row["unit"], *numbers, row["verdict"], "" if pd.isna(row["reason"]) else row["reason"]]
