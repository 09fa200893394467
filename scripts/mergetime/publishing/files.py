"""Files of tables and figures: each is whole in memory before it is renamed into place."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mergetime.core.atomic import write_atomically


def write(stem: Path, rendered: Mapping[str, str | bytes]) -> list[Path]:
    """Write each content to ``stem`` with its suffix, and name the files."""
    written = []
    for suffix, content in rendered.items():
        written.append(stem.with_name(f"{stem.name}.{suffix}"))
        write_atomically(written[-1], content)
    return written


def parquet(table: pa.Table, metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a Parquet file, with ``metadata`` alone beside its columns."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(dict(metadata) if metadata else None), sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content
