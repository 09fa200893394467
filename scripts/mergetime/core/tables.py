"""Parquet files in exactly the columns that are declared for them, written whole or not at all."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mergetime.core.atomic import completed, write_atomically

GROUP_ROWS = 100_000
"""Rows of a row group: about 100 MB of samples in memory."""


@dataclass(frozen=True)
class Column:
    """One column: its Arrow type, whether it may be null, and what it holds (with its unit)."""

    type: pa.DataType
    nullable: bool
    meaning: str


Columns = dict[str, Column]
Table = tuple[pd.DataFrame, Columns]


@dataclass(frozen=True)
class Piece:
    """Rows of a table: a frame, and by name the columns that have one value in all of its rows."""

    frame: pd.DataFrame
    same: Mapping[str, Any] = field(default_factory=dict)


def arrow_schema(columns: dict[str, Column]) -> pa.Schema:
    """The Arrow schema of a column table, meanings as field metadata."""
    return pa.schema(
        [pa.field(name, c.type, nullable=c.nullable, metadata={"meaning": c.meaning}) for name, c in columns.items()]
    )


def write(frame: pd.DataFrame, columns: dict[str, Column], path: Path) -> None:
    """Write ``frame`` as Parquet in exactly the given columns, the whole file or none.

    Raises:
        ValueError: naming the column that is missing, unknown, of another type, or null where it may not be.
    """
    table = _checked(Piece(frame), columns, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with completed(path) as (beside,):
        pq.write_table(table, beside, compression="zstd")


def write_pieces(pieces: Iterable[Piece], columns: dict[str, Column], path: Path, group_rows: int = GROUP_ROWS) -> int:
    """Write frames under one another as Parquet, as :func:`write` writes one, and return the number of rows.

    Never more than a row group and a piece are held at once.

    Args:
        pieces: what is written one below another; an empty iterable gives a file without rows.
        columns: the columns of each.
        path: the file.
        group_rows: rows of a row group, at least; more by less than a piece.

    Raises:
        ValueError: as :func:`write` does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    held: list[pa.Table] = []
    written = 0
    with (
        completed(path) as (beside,),
        pq.ParquetWriter(beside, arrow_schema(columns), compression="zstd") as writer,
    ):
        for piece in pieces:
            held.append(_checked(piece, columns, path))
            if sum(len(table) for table in held) >= group_rows:
                written += _flush(writer, held)
        written += _flush(writer, held)
    return written


def _flush(writer: pq.ParquetWriter, held: list[pa.Table]) -> int:
    """Write the tables as one row group and forget them."""
    rows = sum(len(table) for table in held)
    if rows:
        writer.write_table(pa.concat_tables(held), row_group_size=rows)
    held.clear()
    return rows


def _checked(piece: Piece, columns: dict[str, Column], path: Path) -> pa.Table:
    """The piece in Arrow's types; errors as in :func:`write`."""
    frame, same = piece.frame, piece.same
    given = {*frame.columns, *same}
    missing, unknown = set(columns) - given, given - set(columns)
    if missing or unknown:
        raise ValueError(f"{path}: columns missing {sorted(missing)}, unknown {sorted(unknown)}")
    for name, column in columns.items():
        if not column.nullable and (same[name] is None if name in same else frame[name].isna().any()):
            raise ValueError(f"{path}: column {name} ({column.meaning}) has an empty cell")
    schema = arrow_schema(columns)
    varying = [name for name in columns if name not in same]
    try:
        table = pa.Table.from_pandas(
            frame[varying], schema=pa.schema([schema.field(name) for name in varying]), preserve_index=False
        )
        arrays = [
            pa.repeat(pa.scalar(same[name], schema.field(name).type), len(frame)) if name in same else table[name]
            for name in columns
        ]
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    return pa.Table.from_arrays(arrays, schema=schema)


def read(path: Path, columns: dict[str, Column]) -> pd.DataFrame:
    """Read a Parquet file that must hold exactly the given columns.

    Raises:
        ValueError: naming the file and the columns that differ.
    """
    schema = pq.read_schema(path)
    if schema.names != list(columns):
        difference = sorted(set(schema.names) ^ set(columns)) or "their order"
        raise ValueError(f"{path}: columns differ from this version's: {difference}; rebuild it with collect_results")
    return filled(pd.read_parquet(path), columns, path)


def filled(frame: pd.DataFrame, columns: Columns, path: Path) -> pd.DataFrame:
    """The frame that was read from a file, unless a cell is null or NaN that :func:`write` would have refused.

    Raises:
        ValueError: naming the file and the column.
    """
    for name in frame:
        if name in columns and not columns[name].nullable and frame[name].isna().any():
            raise ValueError(f"{path}: column {name} ({columns[name].meaning}) has an empty cell or NaN; make it again")
    return frame


def write_all(tables: Mapping[Path, Table]) -> None:
    """Write each table to its path, as :func:`write` does."""
    for path, (frame, columns) in tables.items():
        write(frame, columns, path)


def write_with_page(stem: Path, table: Table, page: str) -> list[Path]:
    """Write a table as ``stem``.parquet and the page that prints it as ``stem``.md, and name the two files."""
    files = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("parquet", "md")]
    write_all({files[0]: table})
    write_atomically(files[1], page)
    return files
