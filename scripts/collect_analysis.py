"""Collect what an analysis measured of a study's pools into its tables."""

import argparse
import time
from pathlib import Path

from mergetime.analysis import collecting
from mergetime.config import reading
from mergetime.core import provenance, tables
from mergetime.core.errors import main
from mergetime.study.layout import Layout


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, required=True, help="the study, as describe_study wrote it")
    parser.add_argument("--analysis", choices=collecting.ANALYSES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the study, which holds its artifacts")
    options = parser.parse_args()
    started = time.time()

    study = reading.load(options.study)
    results = collecting.tables_of(study, options.out, options.analysis)
    paths = Layout(str(options.out))
    written = {Path(paths.analysis(*name.split(".", 1))): table for name, table in results.items()}
    tables.write_all(written)
    provenance.record(
        Path(paths.analysis(options.analysis, "json")),
        stage="collect_analysis",
        inputs={"study": options.study},
        config={"study": study.study, "analysis": options.analysis},
        facts={"rows": {name: len(frame) for name, (frame, _) in results.items()}},
        started=started,
        outputs=written,
    )


if __name__ == "__main__":
    main(run)
