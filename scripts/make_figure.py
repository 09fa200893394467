"""Make one figure of a study from its results: PDF, PNG, and the numbers that it draws as Parquet."""

import argparse
import time
from pathlib import Path

from mergetime import provenance, results
from mergetime.errors import UserError, main
from mergetime.publishing import formats
from mergetime.publishing.figures import FIGURES


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", required=True, type=Path, help="results.parquet of the study")
    parser.add_argument("--figure", required=True, choices=FIGURES, help="which figure")
    parser.add_argument("--pool", help="which pool, where the study merges several at one duration")
    parser.add_argument("--out-stem", required=True, type=Path, help="files to write, without .pdf, .png, .parquet")
    options = parser.parse_args()
    started = time.time()

    scores = results.read(options.results, results.RESULTS)
    try:
        figure, drawn = FIGURES[options.figure](scores, options.pool)
    except ValueError as error:
        raise UserError(f"{options.results}: {error}") from error
    written = formats.write_figure(figure, drawn, options.out_stem)
    provenance.record(
        options.out_stem.with_name(f"{options.out_stem.name}.json"),
        stage="make_figure",
        inputs={"results": options.results},
        config={"figure": options.figure, "pool": options.pool},
        facts={},
        started=started,
        outputs=written,
    )


if __name__ == "__main__":
    main(run)
