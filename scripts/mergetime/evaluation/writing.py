"""The files of an evaluation, and of what a judge said of its responses."""

from collections.abc import Sequence
from pathlib import Path

from mergetime.core.atomic import completed
from mergetime.evaluation.means import Row


def beside(stem: Path, suffix: str) -> Path:
    """The file that ends in ``suffix``, of those whose paths begin with ``stem``."""
    return stem.with_name(f"{stem.name}.{suffix}")


def write(stem: Path, metrics: Sequence[Row], samples: Sequence[Row]) -> list[Path]:
    """Write sample rows, then metric rows, as Parquet beside ``stem``, each file whole or not at all.

    Returns:
        The two files, in that order.
    """
    import pandas as pd

    stem.parent.mkdir(parents=True, exist_ok=True)
    files = []
    for suffix, rows in (("samples.parquet", samples), ("parquet", metrics)):
        file = beside(stem, suffix)
        with completed(file) as (unfinished,):
            pd.DataFrame(rows).to_parquet(unfinished, index=False)
        files.append(file)
    return files
