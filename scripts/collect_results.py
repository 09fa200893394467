"""Collect a study's evaluations, loss curves and costs into {results,samples,curves,costs}.parquet."""

import argparse
import time
from collections.abc import Iterable
from pathlib import Path

from mergetime.config import reading
from mergetime.core import provenance, tables
from mergetime.core.errors import main
from mergetime.core.tables import Columns, Piece
from mergetime.results import collection, costs
from mergetime.results import columns as tidy


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, required=True, help="the study, as describe_study wrote it")
    parser.add_argument("--out", type=Path, required=True, help="folder of the study, which holds its artifacts")
    options = parser.parse_args()
    started = time.time()

    study = reading.load(options.study)
    tables_of: dict[str, tuple[Iterable[Piece], Columns]] = {
        "results": (collection.evaluations(study, options.out, "parquet"), tidy.RESULTS),
        "samples": (collection.evaluations(study, options.out, "samples.parquet"), tidy.SAMPLES),
        "costs": ([Piece(costs.costs(study, options.out))], tidy.COSTS),
        "curves": ([Piece(collection.curves(study, options.out))], tidy.CURVES),
    }
    rows = {}
    for name, (pieces, columns) in tables_of.items():
        rows[name] = tables.write_pieces(pieces, columns, options.out / f"{name}.parquet")
    provenance.record(
        options.out / "results.json",
        stage="collect_results",
        inputs={"study": options.study},
        config={"study": study.study},
        facts={"rows": rows},
        started=started,
        outputs=[options.out / f"{name}.parquet" for name in rows],
    )


if __name__ == "__main__":
    main(run)
