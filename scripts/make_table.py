"""Make one table of a study from its tidy files: Parquet, CSV, Markdown and LaTeX."""

import argparse
import time
from pathlib import Path

from mergetime.core import provenance
from mergetime.core.errors import UserError, main
from mergetime.publishing import formats, inputs
from mergetime.publishing.registry import TABLES


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", required=True, choices=TABLES, help="which table")
    inputs.add_options(parser, TABLES)
    parser.add_argument(
        "--out-stem", required=True, type=Path, help="files to write, without .parquet, .csv, .md, .tex"
    )
    parser.add_argument("--show", action="store_true", help="print the table too")
    options = parser.parse_args()
    started = time.time()

    entry = TABLES[options.table]
    read, files = inputs.given(options.table, entry, options)
    try:
        table = entry.make(read)
    except ValueError as error:
        raise UserError(f"{files[entry.reads[0]]}: {error}") from error
    written = formats.write_table(table, options.out_stem)
    provenance.record(
        options.out_stem.with_name(f"{options.out_stem.name}.json"),
        stage="make_table",
        inputs=files,
        config={"table": options.table, "pool": options.pool, "benchmarks": options.benchmarks},
        facts={"notes": list(table.notes), "code": entry.code("make_table")},
        started=started,
        outputs=written,
    )
    if options.show:
        print(formats.plain(table), end="")


if __name__ == "__main__":
    main(run)
