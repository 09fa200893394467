"""Make one table of a study from its results: Parquet, CSV, Markdown and LaTeX."""

import argparse
import json
import time
from pathlib import Path

from mergetime import provenance, results
from mergetime.errors import UserError, main
from mergetime.publishing import formats
from mergetime.publishing.registry import TABLES, Inputs, make


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", required=True, type=Path, help="results.parquet of the study")
    parser.add_argument("--curves", type=Path, help="curves.parquet of the study; needed by health")
    parser.add_argument("--table", required=True, choices=TABLES, help="which table")
    parser.add_argument("--pool", help="which pool, where the study merges several at one duration")
    parser.add_argument(
        "--chance",
        help='score of guessing, a share per benchmark or domain, as JSON: {"gsm8k": 0.0}; needed by health',
    )
    parser.add_argument(
        "--out-stem", required=True, type=Path, help="files to write, without .parquet, .csv, .md, .tex"
    )
    parser.add_argument("--show", action="store_true", help="print the table too")
    options = parser.parse_args()
    started = time.time()

    curves = results.read(options.curves, results.CURVES) if options.curves else None
    chance = _chance(options.chance) if options.chance else None
    scores = results.read(options.results, results.RESULTS)
    try:
        table = make(options.table, Inputs(scores, curves, chance, options.pool))
    except ValueError as error:
        raise UserError(f"{options.results}: {error}") from error
    written = formats.write_table(table, options.out_stem)
    provenance.record(
        options.out_stem.with_name(f"{options.out_stem.name}.json"),
        stage="make_table",
        inputs={"results": options.results} | ({"curves": options.curves} if options.curves else {}),
        config={"table": options.table, "pool": options.pool, "chance": chance},
        facts={"notes": list(table.notes)},
        started=started,
        outputs=written,
    )
    if options.show:
        print(formats.plain(table), end="")


def _chance(text: str) -> dict[str, float]:
    """The levels in ``--chance``."""
    try:
        levels = {str(name): float(level) for name, level in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f'--chance: {text!r} is no JSON object of numbers; write it as {{"gsm8k": 0.0}}') from error
    for name, level in levels.items():
        if not 0 <= level < 1:
            raise UserError(f"--chance: {name} is {level}; give a share from 0 to below 1")
    return levels


if __name__ == "__main__":
    main(run)
