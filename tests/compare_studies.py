"""Compare two runs of a study: what a change of the code's structure must not change.

    python tests/compare_studies.py BEFORE/results/demo AFTER/results/demo

Weights, printed tables and pictures must be the same bytes; Parquet files must agree in every column that was there
before, in the same order of rows; facts of records must agree. Times, speeds, versions and digests of code may differ.
Exits with 1 and a line for each difference.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

BYTES = {".safetensors", ".md", ".csv", ".tex", ".png"}
MEASURED = {"tokens_per_second", "gpu_memory_mb", "energy_j"}
"""Columns that a clock or a meter fills."""
TIMES = {"seconds", "tokens_per_second", "validation_share", "energy_j", "code", "files_sha256"}
"""Facts of records that a clock, a meter or a digest fills. Weights are compared themselves."""
LEFT_OUT = {"report.html", "package"}
"""Made of the other files, with dates."""


def differences(before: Path, after: Path) -> Iterator[str]:
    """What differs, one line each."""
    files = [files_of(folder) for folder in (before, after)]
    for name in sorted(files[0] - files[1]):
        yield f"{name}: is gone"
    for name in sorted(files[1] - files[0]):
        if Path(name).suffix in BYTES:
            yield f"{name}: is new"
    for name in sorted(files[0] & files[1]):
        first, second = before / name, after / name
        match first.suffix:
            case suffix if suffix in BYTES:
                if first.read_bytes() != second.read_bytes():
                    yield f"{name}: other bytes"
            case ".parquet":
                yield from (f"{name}: {text}" for text in columns_that_differ(first, second))
            case ".json":
                yield from (f"{name}: {text}" for text in facts_that_differ(first, second))


def files_of(folder: Path) -> set[str]:
    """The files below a folder, hidden ones and those that are made of others left out."""
    names = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return {name.as_posix() for name in names if name.parts[0] not in LEFT_OUT and not name.name.startswith(".")}


def columns_that_differ(first: Path, second: Path) -> Iterator[str]:
    """Columns of the first Parquet file that the second lacks, or has with other values."""
    old, new = pq.read_table(first), pq.read_table(second)
    if len(old) != len(new):
        yield f"{len(new)} rows instead of {len(old)}"
        return
    for name in old.column_names:
        if name not in new.column_names:
            yield f"column {name} is gone"
        elif name not in MEASURED and not same(old[name].to_pylist(), new[name].to_pylist()):
            yield f"column {name} differs"


def facts_that_differ(first: Path, second: Path) -> Iterator[str]:
    """Facts of the first record that the second lacks, or has with other values."""
    old, new = (json.loads(file.read_text()) for file in (first, second))
    if not isinstance(old, dict) or "facts" not in old:
        return
    for name, value in old["facts"].items():
        if name not in TIMES and not same(value, new["facts"].get(name)):
            yield f"fact {name} is {new['facts'].get(name)!r} instead of {value!r}"


def same(first: Any, second: Any) -> bool:
    """Equality in which NaN equals NaN."""
    return first == second or repr(first) == repr(second)


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="folder of the study as it was, results/NAME")
    parser.add_argument("after", type=Path, help="folder of the study as it is now")
    options = parser.parse_args()
    lines = list(differences(options.before, options.after))
    for line in lines:
        print(line)
    compared = files_of(options.before) & files_of(options.after)
    counts = {kind: sum(Path(name).suffix == kind for name in compared) for kind in (".safetensors", ".parquet", ".md")}
    print(f"{len(compared)} files compared ({counts}), {len(lines)} differences", file=sys.stderr)
    raise SystemExit(bool(lines))


if __name__ == "__main__":
    run()
