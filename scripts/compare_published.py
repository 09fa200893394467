"""Lay a study's numbers beside the published ones: Parquet and Markdown, a verdict a cell."""

import argparse
import time
from pathlib import Path

from mergetime.config import reading
from mergetime.core import provenance, tables
from mergetime.core.errors import UserError, main
from mergetime.papers.duration.published import compare, numbers
from mergetime.results import columns as tidy


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", required=True, type=Path, help="results.parquet of the study")
    parser.add_argument("--study", required=True, type=Path, help="its study.json, or its config")
    parser.add_argument("--published", default=numbers.FOLDER, type=Path, help="folder of the published numbers")
    parser.add_argument("--pool", help="which pool, where the study merges several at one duration")
    parser.add_argument("--out-stem", required=True, type=Path, help="files to write, without .parquet, .md, .json")
    options = parser.parse_args()
    started = time.time()

    published = numbers.load(options.published)
    study = reading.load(options.study)
    try:
        frame = compare.comparison(published, study, tables.read(options.results, tidy.RESULTS), options.pool)
    except ValueError as error:
        raise UserError(f"{options.results}: {error}") from error
    written = [options.out_stem.with_name(f"{options.out_stem.name}.{suffix}") for suffix in ("parquet", "md")]
    tables.write(frame, compare.COLUMNS, written[0])
    provenance.write_atomically(written[1], compare.markdown(frame, study.study, published.paper.title))
    provenance.record(
        options.out_stem.with_name(f"{options.out_stem.name}.json"),
        stage="compare_published",
        inputs={"results": options.results, "study": options.study, "published": options.published},
        config={"pool": options.pool},
        facts=frame["verdict"].value_counts().to_dict(),
        started=started,
        outputs=written,
    )


if __name__ == "__main__":
    main(run)
