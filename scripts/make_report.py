"""Make the report of a study: one HTML page with its verdicts, tables and figures, which loads nothing."""

import argparse
import time
from pathlib import Path

from mergetime.config import reading
from mergetime.core import provenance
from mergetime.core.atomic import write_atomically
from mergetime.core.errors import UserError, main
from mergetime.report import page


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", required=True, type=Path, help="folder of the study, results/NAME")
    parser.add_argument("--claims", type=Path, help="YAML of the claims that were judged, if any were")
    parser.add_argument("--pool", help="which pool, where the study merges several at one duration")
    parser.add_argument(
        "--benchmarks", type=Path, nargs="*", default=[], help="folders of Snakemake's benchmark files, for times"
    )
    parser.add_argument("--out", required=True, type=Path, help="the page to write, .html")
    options = parser.parse_args()
    started = time.time()

    try:
        text = page.build(options.study, options.claims, options.pool, options.benchmarks)
    except ValueError as error:
        raise UserError(f"{options.study}: {error}") from error
    write_atomically(options.out, text)
    study = reading.load(options.study / page.STUDY)
    read = {
        file.relative_to(options.study).as_posix(): file for file in page.inputs(options.study, study, options.claims)
    }
    provenance.record(
        options.out.with_suffix(".json"),
        stage="make_report",
        inputs=read | ({"claims": options.claims} if options.claims else {}),
        config={"pool": options.pool},
        facts={"bytes": options.out.stat().st_size},
        started=started,
        outputs=[options.out],
    )


if __name__ == "__main__":
    main(run)
