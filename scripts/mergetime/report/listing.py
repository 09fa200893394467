"""Tables of the page, as the template prints them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from mergetime.publishing.table import DAGGER, cell_text


@dataclass(frozen=True)
class TextCell:
    """One cell: its text, what follows in small print, and its classes in the page's style."""

    text: str
    small: str = ""
    classes: str = ""


@dataclass(frozen=True)
class Listing:
    """A table: headers with their classes, and rows; a row that is a text heads those below it."""

    head: Sequence[TextCell]
    rows: Sequence[Sequence[TextCell] | str]


@dataclass(frozen=True)
class PrintedTable:
    """A table of the study with its caption and footnotes."""

    name: str
    caption: str
    listings: Sequence[Listing]
    notes: str


def listing(head: Sequence[str], rows: Iterable[Sequence[Any] | str], numbers: Sequence[int] = ()) -> Listing:
    """A table of plain values; ``numbers`` are the positions of the columns that are aligned to the right."""

    def cell(place: int, value: Any) -> TextCell:
        text_cell = value if isinstance(value, TextCell) else TextCell(str(value))
        return (
            TextCell(text_cell.text, text_cell.small, f"{text_cell.classes} n".strip())
            if place in numbers
            else text_cell
        )

    def cells(values: Sequence[Any]) -> list[TextCell]:
        return [cell(place, value) for place, value in enumerate(values)]

    return Listing(cells(head), [row if isinstance(row, str) else cells(row) for row in rows])


def printed(file: Path) -> PrintedTable:
    """A table that make_table wrote as Parquet: one listing for each run of panels that share their columns."""
    content = pq.read_table(file)
    metadata = {key.decode(): value.decode() for key, value in (content.schema.metadata or {}).items()}
    listings: list[Listing] = []
    for panel, frame in content.to_pandas().groupby("panel", sort=False):
        columns = list(dict.fromkeys(frame["column"]))
        words = set(frame.loc[frame["unit"] == "text", "column"])
        head = [TextCell(""), *(TextCell(column, classes="" if column in words else "n") for column in columns)]
        rows: list[Sequence[TextCell] | str] = [str(panel), *_rows(frame, columns, words)]
        if listings and listings[-1].head == head:
            rows = [*listings.pop().rows, *rows]
        listings.append(Listing(head, rows))
    return PrintedTable(file.stem, metadata.get("caption", ""), listings, metadata.get("notes", ""))


def _rows(frame: pd.DataFrame, columns: Sequence[str], words: set[str]) -> list[list[TextCell]]:
    rows = []
    for row, cells in frame.groupby("row", sort=False):
        by_column = {cell["column"]: _cell(cell, cell["column"] in words) for _, cell in cells.iterrows()}
        rows.append([TextCell(str(row)), *(by_column[name] for name in columns)])
    return rows


def _cell(cell: pd.Series, is_words: bool) -> TextCell:
    text, errors = cell_text(cell)
    classes = ("" if is_words else "n") + (" best" if cell["best"] else "")
    return TextCell(text, f"{errors} {DAGGER if cell['boundary'] else ''}".strip(), classes.strip())
