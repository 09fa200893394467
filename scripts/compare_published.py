"""Compare a study's numbers with the published ones: Parquet and Markdown, with one verdict per cell."""

import argparse
import time
from collections import Counter
from pathlib import Path

from mergetime import papers
from mergetime.config import reading
from mergetime.core import provenance, tables
from mergetime.core.errors import UserError, main
from mergetime.papers import comparison
from mergetime.publishing import inputs
from mergetime.publishing.entry import load


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", required=True, type=Path, help="results.parquet of the study")
    parser.add_argument("--samples", required=True, type=Path, help="samples.parquet of the study")
    parser.add_argument("--study", required=True, type=Path, help="its study.json, or its config")
    parser.add_argument("--published", type=Path, help="folder of the paper's data; default: config/papers/PAPER")
    parser.add_argument("--pool", help="which pool, where the study merges several at one duration")
    parser.add_argument("--out-stem", required=True, type=Path, help="files to write, without .parquet, .md, .json")
    options = parser.parse_args()
    started = time.time()

    study = reading.load(options.study)
    paper = papers.get(study.paper)
    if paper.compare is None or paper.citation is None:
        raise UserError(f"{options.study}: compare_published needs {papers.PRINTED_NUMBERS}")
    published = options.published or paper.folder
    files = {"results": options.results, "samples": options.samples}
    frames = {name: inputs.read(name, file) for name, file in files.items()}
    try:
        frame = load(paper.compare)(published, study, inputs.Inputs(frames, pool=options.pool))
    except ValueError as error:
        raise UserError(f"{options.results}: {error}") from error
    outputs = tables.write_with_page(
        options.out_stem, (frame, comparison.COLUMNS), comparison.markdown(frame, study.study, paper.citation.title)
    )
    provenance.record(
        options.out_stem.with_name(f"{options.out_stem.name}.json"),
        stage="compare_published",
        inputs={**files, "study": options.study, "published": published},
        config={"pool": options.pool},
        facts={**Counter(frame["verdict"]), "code": paper.code("compare_published")},
        started=started,
        outputs=outputs,
    )


if __name__ == "__main__":
    main(run)
