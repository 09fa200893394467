"""Parquet files in exactly the columns that are declared for them, written whole or not at all."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class Column:
    """One column: its Arrow type, whether it may be null, and what it holds (with its unit)."""

    type: pa.DataType
    nullable: bool
    meaning: str


Columns = dict[str, Column]
Table = tuple[pd.DataFrame, Columns]


def arrow_schema(columns: dict[str, Column]) -> pa.Schema:
    """The Arrow schema of a column table, meanings as field metadata."""
    return pa.schema(
        [pa.field(name, c.type, nullable=c.nullable, metadata={"meaning": c.meaning}) for name, c in columns.items()]
    )


def write(frame: pd.DataFrame, columns: dict[str, Column], path: Path) -> None:
    """Write ``frame`` as Parquet in exactly the given columns.

    Raises:
        ValueError: naming the column that is missing, unknown, of another type, or null where it may not be.
    """
    missing, unknown = set(columns) - set(frame.columns), set(frame.columns) - set(columns)
    if missing or unknown:
        raise ValueError(f"{path}: columns missing {sorted(missing)}, unknown {sorted(unknown)}")
    for name, column in columns.items():
        if not column.nullable and frame[name].isna().any():
            raise ValueError(f"{path}: column {name} ({column.meaning}) has an empty cell")
    try:
        table = pa.Table.from_pandas(frame[list(columns)], schema=arrow_schema(columns), preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(None), path, compression="zstd")


def read(path: Path, columns: dict[str, Column]) -> pd.DataFrame:
    """Read a Parquet file that must hold exactly the given columns.

    Raises:
        ValueError: naming the file and the columns that differ.
    """
    found = pq.read_schema(path)
    if found.names != list(columns):
        difference = sorted(set(found.names) ^ set(columns)) or "their order"
        raise ValueError(f"{path}: columns differ from this version's: {difference}; rebuild it with collect_results")
    return pd.read_parquet(path)


def write_all(tables: Mapping[Path, Table]) -> None:
    """Write each table beside its path and rename it."""
    for path, (frame, columns) in tables.items():
        beside = path.with_name(f".{path.name}.part")
        write(frame, columns, beside)
        beside.replace(path)
