"""Judge claims of papers on a study's results: supported, contradicted, undecided or not testable."""

import argparse
import time
from collections import Counter
from pathlib import Path

import pandas as pd

from mergetime import papers
from mergetime.claims import claim, evidence, judge, resampling
from mergetime.config import reading
from mergetime.config.study import Study
from mergetime.core import provenance, tables
from mergetime.core.errors import UserError, main
from mergetime.publishing.entry import names
from mergetime.publishing.scores import shown


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--claims", required=True, type=Path, help="YAML of claims, such as config/papers/duration/claims.yaml"
    )
    parser.add_argument("--samples", required=True, type=Path, help="samples.parquet of the study")
    parser.add_argument("--study", required=True, type=Path, help="its study.json, or its config")
    parser.add_argument("--analysis", action="append", default=[], type=Path, help="a file of analysis/; repeatable")
    parser.add_argument("--pool", help="which pool, where the study merges several at one duration")
    parser.add_argument("--replicates", type=int, default=resampling.REPLICATES, help="of the bootstrap")
    parser.add_argument("--out-stem", required=True, type=Path, help="files to write, without .parquet, .md, .json")
    options = parser.parse_args()
    started = time.time()

    study = reading.load(options.study)
    claims = claim.load(options.claims)
    paper = papers.get(study.paper)
    refusals = names(paper.names).refusals
    weights = {name: benchmark.weights for name, benchmark in study.benchmarks.items()}
    try:
        scores = {
            base: resampling.resampled(
                resampling.read(options.samples, base), base, options.pool, weights, options.replicates, refusals
            )
            for base in _by_size(study)
        }
    except ValueError as error:
        raise UserError(f"{options.samples}: {error}") from error
    analyses = {file.stem: shown(pd.read_parquet(file), options.pool) for file in options.analysis}
    frame = judge.judged(claims, evidence.Evidence(scores, analyses))
    outputs = tables.write_with_page(
        options.out_stem, (frame, judge.COLUMNS), judge.markdown(frame, claims, study.study)
    )
    provenance.record(
        options.out_stem.with_name(f"{options.out_stem.name}.json"),
        stage="judge_claims",
        inputs={"claims": options.claims, "samples": options.samples, "study": options.study}
        | {file.stem: file for file in options.analysis},
        config={"pool": options.pool, "replicates": options.replicates},
        facts={**Counter(frame["verdict"]), "code": paper.code("judge_claims")},
        started=started,
        outputs=outputs,
    )


def _by_size(study: Study) -> list[str]:
    """The bases, smallest first: by their parameters where the config gives all of them, else in its order."""
    sizes = {name: base.parameters for name, base in study.bases.items()}
    known = [size for size in sizes.values() if size is not None]
    return sorted(sizes, key=lambda name: sizes[name] or 0) if len(known) == len(sizes) else list(sizes)


if __name__ == "__main__":
    main(run)
