"""Choose a method's hyper-parameters by the mean primary metric of its candidates on validation, judged where it is."""

import argparse
import json
import time
from pathlib import Path

import pyarrow.parquet as pq

from mergetime.core import provenance
from mergetime.core.errors import UserError, main
from mergetime.evaluation.selection import best_candidate, held_out_score, rows_with_judged


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", nargs="+", required=True, metavar="JSON", help="hyper-parameters, one each")
    parser.add_argument("--scores", type=Path, nargs="+", required=True, help="their validation results, in that order")
    parser.add_argument("--judged", type=Path, nargs="*", default=[], help="what judges said of them, in that order")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    started = time.time()

    candidates = [json.loads(text) for text in options.candidates]
    if len(candidates) != len(options.scores):
        raise UserError(f"--scores: {len(candidates)} candidates, but {len(options.scores)} files")
    if options.judged and len(options.judged) != len(candidates):
        raise UserError(f"--judged: {len(candidates)} candidates, but {len(options.judged)} files")
    rows = [pq.read_table(file).to_pylist() for file in options.scores]
    judged = [pq.read_table(file).to_pylist() for file in options.judged] or [[]] * len(rows)
    scores = [held_out_score(rows_with_judged(*both)) for both in zip(rows, judged, strict=True)]
    provenance.record(
        options.out,
        stage="select_hyperparameters",
        inputs={str(number): file for number, file in enumerate(options.scores)}
        | {f"{number} judged": file for number, file in enumerate(options.judged)},
        config={"candidates": candidates},
        facts={"chosen": candidates[best_candidate(scores)], "scores": scores},
        started=started,
    )


if __name__ == "__main__":
    main(run)
