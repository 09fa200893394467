"""Frames with their columns, written whole or not at all."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from mergetime import results
from mergetime.results import Column

Columns = dict[str, Column]
Table = tuple[pd.DataFrame, Columns]


def write(tables: Mapping[Path, Table]) -> None:
    """Write each table beside its path and rename it."""
    for path, (frame, columns) in tables.items():
        beside = path.with_name(f".{path.name}.part")
        results.write(frame, columns, beside)
        beside.replace(path)
