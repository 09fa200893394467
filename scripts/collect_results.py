"""Collect every evaluation and loss curve of a study into results.parquet, samples.parquet and curves.parquet."""

import argparse
import time
from pathlib import Path

from mergetime.config import reading
from mergetime.core import provenance, tables
from mergetime.core.errors import main
from mergetime.results import collection
from mergetime.results import columns as tidy


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, required=True, help="the study, as describe_study wrote it")
    parser.add_argument("--out", type=Path, required=True, help="folder of the study, which holds its artifacts")
    options = parser.parse_args()
    started = time.time()

    study = reading.load(options.study)
    frames = {
        "results": (collection.evaluations(study, options.out, "parquet"), tidy.RESULTS),
        "samples": (collection.evaluations(study, options.out, "samples.parquet"), tidy.SAMPLES),
        "curves": (collection.curves(study, options.out), tidy.CURVES),
    }
    for name, (frame, columns) in frames.items():
        beside = options.out / f".{name}.part"
        tables.write(frame, columns, beside)
        beside.replace(options.out / f"{name}.parquet")
    provenance.record(
        options.out / "results.json",
        stage="collect_results",
        inputs={"study": options.study},
        config={"study": study.study},
        facts={"rows": {name: len(frame) for name, (frame, _) in frames.items()}},
        started=started,
        outputs=[options.out / f"{name}.parquet" for name in frames],
    )


if __name__ == "__main__":
    main(run)
